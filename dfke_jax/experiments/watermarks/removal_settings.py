"""Settings of watermark removal, and what each attack takes from them."""

import dataclasses
from typing import Any

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.experiments.watermarks.entangled import check_entangled
from dfke_jax.experiments.watermarks.removal_extractions import (
    EXTRACTIONS,
    TakenSettings,
    extraction_settings,
    taken_settings,
)
from dfke_jax.experiments.watermarks.removal_marks import SCHEMES, MarkSettings
from dfke_jax.watermarking.removal import REFIT, REMOVALS, RETRAINING, CleanseSettings, TrainingSettings


@dataclasses.dataclass(frozen=True)
class RemovalSettings(MarkSettings, TakenSettings):
    """Settings of watermark removal."""

    schemes: tuple[str, ...] = ("from_scratch", "pretrained")
    """Marks that are attacked."""
    attacks: tuple[str, ...] = tuple(REMOVALS)
    """Attacks that are made. Those by extraction (knockoff, dfme, dfms, ...) are named besides."""
    attack_steps: int = 1200
    """Training steps of attacks that fine-tune."""
    attack_batch: int = 100
    """Their batch size."""
    attack_learning_rate: float = 0.01
    """Their learning rate (SGD)."""
    retraining_steps: int = 3000
    """Training steps of attacks that train a fresh network."""
    attacker_images: int = 0
    """Training images that the attacker holds; 0 for all."""
    points: int = 6
    """How often an attack that trains is looked at on its way."""
    fractions: tuple[float, ...] = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)
    """Shares of weights or units that are pruned."""
    fraction: float = 0.6
    """The share that stands in the matrix."""
    bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    """Bits of quantised weights; in the matrix stand 4."""
    other: str = ""
    """Another data set, of images of the same shape, for transfer learning; empty leaves that attack out."""
    cleanse: CleanseSettings = CleanseSettings()
    """How Neural Cleanse searches for triggers."""

    def __post_init__(self):
        super().__post_init__()
        for scheme in self.schemes:
            if scheme not in SCHEMES:
                raise UnknownNameError("watermarking scheme", scheme, SCHEMES)
        if {"entangled", "entangled_plain"} & set(self.schemes):
            check_entangled(self.entangled, self.unrelated)
        for attack in self.attacks:
            if attack in EXTRACTIONS:
                extraction_settings(self, attack)
            elif attack not in REMOVALS:
                raise UnknownNameError("removal attack", attack, [*REMOVALS, *EXTRACTIONS])
        if not self.schemes or not self.attacks:
            raise InputError("removal needs at least one scheme and at least one attack")
        for name in ("retraining_steps", "points"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not all(0 <= fraction <= 1 for fraction in (*self.fractions, self.fraction)):
            raise InputError(f"fractions must lie in [0, 1], got {self.fractions} and {self.fraction}")
        _ = self.training
        object.__setattr__(self, "extractions", taken_settings(self, self.attacks))

    @property
    def training(self) -> TrainingSettings:
        """Of attacks that fine-tune."""
        return TrainingSettings(self.attack_steps, self.attack_batch, self.attack_learning_rate)

    @property
    def made(self) -> list[str]:
        """The attacks that are made: transfer learning only with another data set."""
        return [name for name in self.attacks if name != "transfer_learning" or self.other]


def options_of(config: RemovalSettings, name: str) -> dict[str, Any]:
    """What an attack of `REMOVALS` is given by name; attacks by extraction have settings of their own."""
    tuning = {"settings": config.training}
    steps = config.attack_steps
    return {
        "high_rate_fine_tuning": {"settings": dataclasses.replace(REFIT, steps=steps, batch_size=config.attack_batch)},
        "magnitude_pruning": {"fraction": config.fraction},
        "dormant_pruning": {"fraction": config.fraction},
        "fine_pruning": {"fraction": config.fraction, **tuning},
        "neural_cleanse": {"settings": dataclasses.replace(config.training, steps=max(1, steps // 10))},
        "neural_cleanse_patching": {},
        "quantisation": {},
        "half_precision": {},
        "input_filter": {},
        "noise_averaging": {"draws": 8},
        "soft_retraining": {"settings": dataclasses.replace(RETRAINING, steps=config.retraining_steps)},
        "hard_retraining": {"settings": dataclasses.replace(RETRAINING, steps=config.retraining_steps)},
        "overwriting": {"count": config.triggers, "companions_per_batch": config.companions_per_batch, **tuning},
    }.get(name, tuning)


__all__ = ["RemovalSettings", "options_of"]
