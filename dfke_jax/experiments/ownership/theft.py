"""Dataset inference as an experiment: what its recipes share, from data and victim to distances and presets."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.mesh import replicate
from dfke_jax.dataset_inference import BlindWalkSettings, InferenceSettings, Verdict, prepare
from dfke_jax.dataset_inference.case import Case, Embedded, embed
from dfke_jax.distillation.data_impressions import ImpressionSettings
from dfke_jax.distillation.response import cross_entropy_training
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.settings import Settings, augmentation
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.ownership.thieves import Theft, cut
from dfke_jax.nn import registry
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained


@dataclasses.dataclass(frozen=True)
class TheftSettings(Settings):
    """Settings of dataset inference: data, victim, thieves, and the test. The teacher is the victim's network."""

    private: int = 600
    """Images that the victim is trained on."""
    samples: int = 600
    """How many of them, and of public ones, the owner works with; a part trains the regressor, suspects see the rest."""
    others: int = 2000
    """Images that thieves ask the victim about, or fine-tune it on."""
    other_network: str = "mlp_small"
    """Network of the thief who trains another architecture."""
    impressions: int = 500
    """Images that the zero-shot thief synthesises."""
    synthesis: ImpressionSettings = ImpressionSettings(steps=200)
    """How they are made."""
    fine_tuning_steps: int = 300
    """Steps of fine-tuning the victim."""
    fine_tuning_rate: float = 0.01
    """Learning rate of it (SGD with momentum)."""
    adversarial_steps: int = 3
    """PGD steps of the thief who trains adversarially."""
    epsilon: float = 0.05
    """How far these may move a pixel."""
    answer_noise: float = 0.2
    """Deviation of the noise that a thief adds to the probabilities that a stolen model answers."""
    early: float = 0.1
    """Share of the training after which the thief who stops early stops."""
    inference: InferenceSettings = InferenceSettings(walk=BlindWalkSettings(noise=4.0))
    """How a suspect is tested."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("private", "samples", "others", "impressions", "fine_tuning_steps", "adversarial_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.samples > self.private:
            raise InputError(f"samples ({self.samples}) are private images, of which there are {self.private}")
        if not (self.fine_tuning_rate > 0 and self.epsilon >= 0 and self.answer_noise >= 0 and 0 < self.early <= 1):
            raise InputError(
                "fine_tuning_rate must be positive, epsilon and answer_noise not negative and early in (0, 1], got "
                f"{self.fine_tuning_rate}, {self.epsilon}, {self.answer_noise} and {self.early}"
            )
        registry.describe(self.other_network)


def new_theft(config: TheftSettings, bench: Workbench, seed: int) -> tuple[Theft, int]:
    """The seed's data and its victim, and how many repeated images were left out."""
    train = bench.dataset.train
    sizes = config.private, config.samples, config.others
    parts, repeated = cut(train.images, train.labels, sizes, seed)
    network = bench.network(config.teacher)
    images, labels = map(jnp.asarray, parts.private)
    method = cross_entropy_training(
        network,
        images,
        labels,
        steps=config.teacher_steps,
        batch_size=config.teacher_batch,
        learning_rate=config.teacher_learning_rate,
        augment=augmentation(config.teacher_augmentation),
    )
    state = bench.stage("victim", "victim", seed, method, config.teacher_steps, rows=config.teacher_batch)
    return Theft(bench, config, seed, parts, trained(network, state)), repeated


def _first(samples: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    return samples[0][:count], samples[1][:count]


def distances_of(bench: Workbench, case: Case, seed: int, name: str, model: Any) -> Embedded:
    """A model on the case's samples; kept in the run's directory, so that a resumed run does not walk again."""
    path = bench.out / "distances" / f"seed{seed}" / f"{name}.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["data"]) == bench.data_fingerprint:
                distances, correct = (
                    (stored[f"{what}_private"], stored[f"{what}_public"]) for what in ("distances", "correct")
                )
                queries, sent, gradients, never = stored["counts"].tolist()
                return Embedded(distances, correct, int(queries), int(sent), int(gradients), never)
    with bench.clock("inference"), _all_devices(bench):
        model = _everywhere(bench, getattr(model, "answer", model))
        found = embed(model, case.samples, case.key, case.settings, case.box)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{name}.tmp.npz")
    np.savez_compressed(
        temporary,
        data=bench.data_fingerprint,
        distances_private=found.distances[0],
        distances_public=found.distances[1],
        correct_private=found.correct[0],
        correct_public=found.correct[1],
        counts=np.array([found.queries, found.rows_sent, found.gradients, found.never]),
    )
    temporary.replace(path)
    return found


def _all_devices(bench: Workbench) -> contextlib.AbstractContextManager:
    """Every device walks with a share of the samples."""
    return jax.set_mesh(bench.mesh) if bench.mesh else contextlib.nullcontext()


def _everywhere(bench: Workbench, model: Any) -> Any:
    return replicate(model, bench.mesh) if bench.mesh else model


def enter(arm: Arm, figures: dict[str, float]) -> None:
    """Adds one seed's figures; p-values keep all their digits."""
    for name, value in figures.items():
        arm.metrics.setdefault(name, []).append(float(value))


def figures_of(verdict: Verdict) -> dict[str, float]:
    low, high = verdict.test.interval
    return {
        "effect": verdict.test.effect,
        "effect_low": max(low, -2.0),  # scores lie in [−1, 1]
        "effect_high": min(high, 2.0),
        **verdict.p_values,
        "stolen": 100.0 * verdict.stolen,
        "queries": verdict.queries,
        "rows_sent": verdict.rows_sent,
        "gradients": verdict.gradients,
        "never": verdict.never,
        "saturated": verdict.saturated,
        **{f"p_at_{m}": p for m, p in zip(verdict.curve.samples.tolist(), verdict.curve.median, strict=True)},
    }


def case_of(theft: Theft, references: Sequence[Classifier] = (), public: tuple | None = None) -> Case:
    config, bench = theft.config, theft.bench
    with bench.clock("inference"), _all_devices(bench):
        return prepare(
            _first(theft.parts.private, config.samples),
            public or theft.parts.public,
            victim=_everywhere(bench, theft.victim),
            key=bench.key(theft.seed, "walks"),
            references=[_everywhere(bench, model) for model in references],
            settings=config.inference,
        )


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


__all__ = ["PAPER", "PRESETS", "TheftSettings", "case_of", "distances_of", "enter", "figures_of", "new_theft"]
