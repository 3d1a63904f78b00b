"""Settings of dataset inference, and what they are for each data set."""

import dataclasses
from typing import Any, ClassVar, Literal

from dfke_jax.core.errors import InputError
from dfke_jax.dataset_inference import BlindWalkSettings, InferenceSettings
from dfke_jax.distillation.data_impressions import ImpressionSettings
from dfke_jax.experiments.bench.settings import LearningSettings, SupervisedSettings, TransferSettings
from dfke_jax.nn import registry


@dataclasses.dataclass(frozen=True)
class TheftSettings(LearningSettings, SupervisedSettings):
    """Data, victim, a thief who distils or fine-tunes, and the test. The teacher is the victim's network."""

    own: ClassVar[Literal["network", "answers"] | None] = None

    private: int = 600
    """Images that the victim is trained on."""
    samples: int = 600
    """How many of them, and of public ones, the owner works with; a part trains the regressor, suspects see the rest."""
    others: int = 2000
    """Images that thieves ask the victim about, or fine-tune it on."""
    fine_tuning_rate: float = 0.01
    """Learning rate of fine-tuning the victim (SGD with momentum)."""
    inference: InferenceSettings = InferenceSettings(walk=BlindWalkSettings(noise=4.0))
    """How a suspect is tested."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("private", "samples", "others"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.samples > self.private:
            raise InputError(f"samples ({self.samples}) are private images, of which there are {self.private}")
        if self.fine_tuning_rate <= 0:
            raise InputError(f"fine_tuning_rate must be positive, got {self.fine_tuning_rate}")


@dataclasses.dataclass(frozen=True)
class ThreatSettings(TheftSettings, TransferSettings):
    """What all the thieves of `dfke_jax.experiments.ownership.thieves.THREATS` need besides."""

    other_network: str = "mlp_small"
    """Network of the thief who trains another architecture."""
    impressions: int = 500
    """Images that the zero-shot thief synthesises."""
    synthesis: ImpressionSettings = ImpressionSettings(steps=200)
    """How they are made."""
    fine_tuning_steps: int = 300
    """Steps of fine-tuning the victim."""
    adversarial_steps: int = 3
    """PGD steps of the thief who trains adversarially."""
    epsilon: float = 0.05
    """How far these may move a pixel."""
    answer_noise: float = 0.2
    """Deviation of the noise that a thief adds to the probabilities that a stolen model answers."""
    early: float = 0.1
    """Share of the training after which the thief who stops early stops."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("impressions", "fine_tuning_steps", "adversarial_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.epsilon >= 0 and self.answer_noise >= 0 and 0 < self.early <= 1):
            raise InputError(
                "epsilon and answer_noise must not be negative and early in (0, 1], got "
                f"{self.epsilon}, {self.answer_noise} and {self.early}"
            )
        registry.describe(self.other_network)


PAPER = "Maini, Yaghini, Papernot: Dataset Inference: Ownership Resolution in Machine Learning, ICLR 2021"
_SMALL_WALK = BlindWalkSettings(starts=5, noise=4.0)
_DIGITS = {
    "teacher": "mlp_small",
    "student": "mlp_small",
    "other_network": "hinton_mlp_half",
    "private": 300,
    "samples": 300,
    "others": 200,
    "teacher_steps": 300,
    "teacher_batch": 64,
    "distillation_steps": 300,
    "fine_tuning_steps": 50,
    "impressions": 200,
    "independents": 21,
    "references": 2,
    "seeds": 1,
    "inference": InferenceSettings(walk=_SMALL_WALK, permutations=999),
}
_SYNTHETIC = {
    "teacher": "mlp_small",
    "student": "mlp_small",
    "other_network": "hinton_mlp_half",
    "teacher_steps": 1000,
    "teacher_batch": 64,
    "distillation_steps": 1000,
    "augmentation": "none",
    "independents": 30,
    "inference": InferenceSettings(walk=_SMALL_WALK),
}
_FASHION = {
    "other_network": "mlp_small",
    "private": 2000,
    "samples": 1000,
    "others": 8000,
    "teacher_steps": 1500,
    "teacher_batch": 64,
    "distillation_steps": 1500,
    "impressions": 1000,
    "synthesis": ImpressionSettings(
        steps=200, start="smooth", start_mean=(0.0, 1.0), start_sd=(0.0, 1.0), total_variation=(0.002, 0.032)
    ),
    "seeds": 1,
    "independents": 21,
    "references": 3,
    "inference": InferenceSettings(walk=_SMALL_WALK),
}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": _DIGITS,
    "synthetic": _SYNTHETIC,
    "fashion_mnist": _FASHION,
    "mnist": _FASHION,
}

__all__ = ["PAPER", "PRESETS", "TheftSettings", "ThreatSettings"]
