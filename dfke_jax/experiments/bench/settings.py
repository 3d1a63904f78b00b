"""What all recipes have in common: data, networks, training budgets."""

import dataclasses
import functools
from typing import ClassVar, Literal

from dfke_jax import data
from dfke_jax.core.checks import refuse_nan
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Augmentation
from dfke_jax.nn import registry
from dfke_jax.nn.named import network
from dfke_jax.nn.precision import Precision, compute_precision

TRAININGS = ("adam", "airbench")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Data and the network that everything is about, the teacher; every recipe's settings begin with these.

    ``own`` says what a recipe does with a teacher that is a model of the user's own: ``network``, it differentiates
    through it; ``answers``, it asks it alone; None, it trains all of its networks itself.

    What further groups below add belongs to what a recipe does, and a recipe's settings are made of
    those groups whose fields it reads: an option that changes nothing would be taken for one that does.
    """

    own: ClassVar[Literal["network", "answers"] | None] = None

    dataset: str = "digits"
    """Data set: digits, a TFDS name (mnist, fashion_mnist, ...), an .npz file, a folder of pictures, FILE.csv:COLUMN."""
    seeds: int = 3
    """How many seeds; each has its own teacher, samples and student."""
    seed: int = 0
    """The first seed."""
    teacher: str = "lenet5"
    """Network of the teacher, which is then trained; or a model of one's own: a path, FILE.py:NAME, an address."""
    declare: tuple[str, ...] = ()
    """What a model of one's own does not say itself: NAME=VALUE, as mean=0.5 or gives=probabilities."""
    teacher_steps: int = 4000
    """Training steps of the teacher, and of the from-scratch student."""
    teacher_batch: int = 128
    """Batch size of that training."""
    teacher_learning_rate: float = 2e-3
    """Adam's learning rate at its beginning; it falls to zero along a cosine."""
    fit: Literal["pad", "bilinear"] = "pad"
    """How images reach the size that the networks take."""
    precision: Precision = "float32"
    """What networks compute in; bfloat16 is for GPUs and TPUs. Parameters and losses are float32 either way."""

    def __post_init__(self):
        refuse_nan(self)
        _at_least_one(self, "seeds", "teacher_steps", "teacher_batch")
        if self.teacher_learning_rate <= 0:
            raise InputError("learning rates must be positive")
        compute_precision(self.precision)
        if not own_model(self.teacher):
            registry.describe(self.teacher)
            if self.declare:
                raise InputError(
                    f"declare says something of a model of one's own, and {self.teacher} is a network's name"
                )


@dataclasses.dataclass(frozen=True)
class SupervisedSettings(Settings):
    """The teacher is trained by cross-entropy on labelled images."""

    teacher_augmentation: Literal["none", "shift", "affine", "crop_flip"] = "none"
    """Augmentation of the teacher's training, and of the from-scratch student's."""
    teacher_training: Literal["adam", "airbench"] = "adam"
    """How that training goes: Adam, or, for networks of its family, the CIFAR-10 speed run with rates of its own."""

    def __post_init__(self):
        super().__post_init__()
        augmentation(self.teacher_augmentation)
        if self.teacher_training not in TRAININGS:
            raise UnknownNameError("training", self.teacher_training, TRAININGS)
        if self.teacher_training == "airbench" and not self.teacher.startswith("airbench"):
            raise InputError(
                f"the speed run trains networks of its own family, not {self.teacher}; take --teacher airbench94"
            )


@dataclasses.dataclass(frozen=True)
class StudentSettings(Settings):
    """A second network: a student, a clone or a copy."""

    student: str = "lenet5_half"
    """Network of the student."""

    def __post_init__(self):
        super().__post_init__()
        registry.describe(self.student)


@dataclasses.dataclass(frozen=True)
class LearningSettings(StudentSettings):
    """How a student learns what the teacher answers."""

    distillation_steps: int = 6000
    """Training steps of every distilled student."""
    distillation_batch: int = 64
    """Batch size of distillation."""
    distillation_learning_rate: float = 3e-3
    """Adam's learning rate at the beginning of distillation; it falls to zero along a cosine."""

    def __post_init__(self):
        super().__post_init__()
        _at_least_one(self, "distillation_steps", "distillation_batch")
        if self.distillation_learning_rate <= 0:
            raise InputError("learning rates must be positive")


@dataclasses.dataclass(frozen=True)
class DistillationSettings(LearningSettings, SupervisedSettings):
    """Distillation at a temperature, from a teacher that was trained by cross-entropy."""

    own: ClassVar[Literal["network", "answers"] | None] = "network"

    temperature: float = 20.0
    """Temperature of distillation."""

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise InputError(f"temperature must be positive, got {self.temperature}")


@dataclasses.dataclass(frozen=True)
class AnchoredSettings(DistillationSettings):
    """Recipes with the anchor that distils on the real images."""

    real_augmentation: Literal["none", "shift", "affine", "affine_noise"] = "shift"
    """Augmentation of the real images in the anchor that distils with them."""

    def __post_init__(self):
        super().__post_init__()
        augmentation(self.real_augmentation)


@dataclasses.dataclass(frozen=True)
class GeneratedSettings(AnchoredSettings):
    """Recipes whose images a generator makes, beside which images stand that nobody made for the purpose."""

    arbitrary: int = 3000
    """Images of smooth noise, and of random shapes balanced by the teacher's answers, that are distilled from as well; 0 for
    none."""

    def __post_init__(self):
        super().__post_init__()
        if self.arbitrary < 0:
            raise InputError(f"arbitrary must not be negative, got {self.arbitrary}")


@dataclasses.dataclass(frozen=True)
class TransferSettings(DistillationSettings):
    """Recipes that distil on a transfer set: images that are not the real ones."""

    augmentation: Literal["none", "shift", "affine", "affine_noise", "published"] = "affine_noise"
    """Augmentation of transfer sets; the teacher answers the augmented images."""

    def __post_init__(self):
        super().__post_init__()
        augmentation(self.augmentation)


@dataclasses.dataclass(frozen=True)
class PoolSettings(TransferSettings, AnchoredSettings):
    """Settings of recipes that synthesise a pool of samples."""

    samples: int = 3000
    """Synthesised images."""
    synthesis_batch: int = 500
    """Samples optimised side by side."""
    baselines: bool = True
    """Whether uniform noise is distilled from as well."""

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 1 or self.synthesis_batch < 1 or self.samples % self.synthesis_batch:
            raise InputError(
                f"samples ({self.samples}) must be a positive multiple of synthesis_batch ({self.synthesis_batch})"
            )


def own_model(teacher: str) -> bool:
    """Whether a teacher is somebody's model and no network's name: a path, ``FILE.py:NAME`` or an address."""
    return any(sign in teacher for sign in "/.:\\")


def _at_least_one(settings: Settings, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(settings, name)}")


DIGITS = {"teacher_steps": 800, "fit": "bilinear", "teacher_augmentation": "none"}
"""Budgets that suit 1,437 small images."""
DISTILLED_DIGITS = {**DIGITS, "distillation_steps": 1000, "real_augmentation": "affine"}
"""The same, with those of distillation."""


DENSE = {"teacher": "mlp_small", "student": "mlp_small", "teacher_steps": 1000}
"""Networks for feature vectors."""


AIRBENCH = {
    "teacher": "airbench94",
    "teacher_training": "airbench",
    "teacher_steps": 200,
    "teacher_batch": 2000,
    "teacher_augmentation": "crop_flip",
}
"""A teacher for CIFAR-10 that two CPU cores can train: eight passes over the images."""


@functools.cache
def augmentation(name: str) -> Augmentation | None:
    """Augmentations by name; all but ``crop_flip`` (shifts up to 4 pixels and mirror images, for CIFAR) are for digits and clothes.
    In the speed run ``crop_flip`` is its own: shifts up to 2 pixels of the reflected image, mirror images in turns.

    ``shift``: up to 2 pixels. ``affine``: rotation up to 0.35 rad, scale 0.7 to 1.15, shift up to 4 pixels.
    ``affine_noise``: the same and Gaussian noise of a deviation up to 0.3. ``published``: the families that the released
    ZSKD code draws from (scaling down to 0.6, shifts by 20%, rotation by up to 90 degrees, flips, salt-and-pepper and
    Gaussian noise), one random composition per image where that code expands a batch 106-fold.
    """
    table = {
        "none": lambda: None,
        "shift": lambda: data.shift(2),
        "crop_flip": lambda: data.compose(data.shift(4), data.flip()),
        "affine": lambda: data.affine(0.35, (0.7, 1.15), 4.0),
        "affine_noise": lambda: data.compose(data.affine(0.35, (0.7, 1.15), 4.0), data.gaussian_noise(0.3)),
        "published": lambda: data.compose(
            data.affine(1.5708, (0.6, 1.0), 5.6), data.flip(), data.salt_and_pepper(0.1), data.gaussian_noise(0.2)
        ),
    }
    if name not in table:
        raise UnknownNameError("augmentation", name, table)
    return table[name]()


__all__ = [
    "AIRBENCH",
    "DENSE",
    "DIGITS",
    "DISTILLED_DIGITS",
    "AnchoredSettings",
    "DistillationSettings",
    "GeneratedSettings",
    "LearningSettings",
    "PoolSettings",
    "Settings",
    "StudentSettings",
    "SupervisedSettings",
    "TransferSettings",
    "augmentation",
    "network",
    "own_model",
]
