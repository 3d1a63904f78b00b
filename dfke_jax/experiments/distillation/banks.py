"""Inverted images in a bank: CMI, Fast-DFKD and NAYER, each beside generators that were never told anything."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Augmentation
from dfke_jax.data import compose, flip, resized_crop
from dfke_jax.distillation import CMISettings, FastSettings, NAYERSettings, cmi, fast_dfkd, nayer, student_in
from dfke_jax.distillation.cmi import cmi_budget
from dfke_jax.distillation.fast_dfkd import fast_budget
from dfke_jax.distillation.nayer import nayer_budget
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, GeneratedSettings, augmentation
from dfke_jax.experiments.bench.splitting import synthesis_apart
from dfke_jax.experiments.bench.steadiness import student_variables, transition_error, watched_stage
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.duels import WIDE_RESNETS
from dfke_jax.experiments.distillation.syntheses import pool_metrics, sample_diversity
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.nn.classifier import Classifier
from dfke_jax.synthesis.pool import Pool


@dataclasses.dataclass(frozen=True)
class BankRecipeSettings(GeneratedSettings):
    """What recipes with a bank have in common."""

    teacher: str = "lenet5_bn"
    """Network of the teacher; it needs batch normalisation."""
    rounds: int = 40
    """Rounds, each of some batches of images and some steps of the student, whose rates span them."""
    augmentation: Literal["none", "shift", "crop_flip", "affine", "affine_noise"] = "shift"
    """Augmentation of what is inverted against, and of what the student learns."""
    method: Any = None
    """How the method runs; every recipe has settings of its own."""

    def __post_init__(self):
        super().__post_init__()
        augmentation(self.augmentation)
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, got {self.rounds}")

    @property
    def scheduled(self) -> Any:
        """The method's settings, for so many rounds."""
        return dataclasses.replace(self.method, rounds=self.rounds)


SMALL: dict[str, Any] = {
    "batch_size": 120, "width": 16, "latent": 64, "student_optimizer": "adam", "student_rate": 3e-3, "student_batch": 64,
}  # fmt: skip
"""For LeNets on grey images and CPUs: narrow generators, and the student's optimiser of the other recipes."""


@dataclasses.dataclass(frozen=True)
class CMIRecipeSettings(BankRecipeSettings):
    """Settings of CMI."""

    method: CMISettings = CMISettings(**SMALL, steps=100, student_steps=150, negatives=1024, feature_bank=4800)
    """How the method runs."""


@dataclasses.dataclass(frozen=True)
class FastRecipeSettings(BankRecipeSettings):
    """Settings of Fast-DFKD."""

    rounds: int = 110
    """Rounds, those of the warm-up among them."""
    method: FastSettings = FastSettings(**SMALL, warm_up=10, student_steps=60)
    """How the method runs."""


@dataclasses.dataclass(frozen=True)
class NAYERRecipeSettings(BankRecipeSettings):
    """Settings of NAYER."""

    rounds: int = 50
    """Rounds, those of the warm-up among them."""
    method: NAYERSettings = NAYERSettings(**SMALL, warm_up=10, student_steps=150)
    """How the method runs."""


def _cmi(teacher: Classifier, student: Classifier, settings: CMISettings, augment: Augmentation | None) -> Method:
    return cmi(teacher, student, settings, augment=augment, view=resized_crop(0.25))


def _cmi_with_flips(
    teacher: Classifier, student: Classifier, settings: CMISettings, augment: Augmentation | None
) -> Method:
    return cmi(teacher, student, settings, augment=augment, view=compose(resized_crop(0.25), flip()))


def _fast(teacher: Classifier, student: Classifier, settings: FastSettings, augment: Augmentation | None) -> Method:
    return fast_dfkd(teacher, student, settings, augment=augment)


def _nayer(teacher: Classifier, student: Classifier, settings: NAYERSettings, augment: Augmentation | None) -> Method:
    return nayer(teacher, student, settings, augment=augment)


@dataclasses.dataclass(frozen=True)
class BankRecipe:
    """A method of this kind: name and label of its arm, the method itself, and what its rounds cost."""

    name: str
    label: str
    make: Callable[[Classifier, Classifier, Any, Augmentation | None], Method]
    budget: Callable[[Any, int], dict[str, int]]

    def arms(self, config: BankRecipeSettings) -> list[Arm]:
        """Anchors, the method, and the same with generators that never learn."""
        return [*anchor_arms(config), *(arm for arm, _ in self._pair(config))]

    def _pair(self, config: BankRecipeSettings) -> list[tuple[Arm, Any]]:
        method, still = config.scheduled, dataclasses.replace(config.scheduled, steps=0)
        spent = lambda settings: self.budget(settings, config.rounds)
        return [
            (Arm(self.name, self.label, "method", budget=spent(method)), method),
            (Arm(f"{self.name}_control", "Generators that never learn", "control", budget=spent(still)), still),
        ]

    def measure(self, run: Run[BankRecipeSettings]) -> None:
        """Trains the students and measures them, and what the teacher sees in the banks."""
        measure_anchors(run)
        c, student = run.config, run.network(run.config.student)
        for arm, settings in self._pair(c):
            make = _cmi_with_flips if self.make is _cmi and c.augmentation == "crop_flip" else self.make
            method = make(run.teacher, student, settings, augmentation(c.augmentation))
            updates = self.budget(settings, c.rounds)["student_updates"]
            with synthesis_apart(run, student, updates, settings.student_batch):
                state, steady = watched_stage(
                    run, f"{arm.name}/bank", method, c.rounds, student, variables=student_variables,
                    rows=settings.batch_size * settings.batches, draws_as=f"{self.name}/bank",
                )  # fmt: skip
            bank = state.bank
            images = bank.images / jnp.float32(255)
            run.keep(arm.name, images, bank.targets)
            pool = Pool(bank.images, bank.targets, bank.written, ())
            learnt = student_in(student, state)
            seen = {**pool_metrics(pool, run.teacher), **sample_diversity(run, images)}
            run.record(arm.name, learnt, {**seen, **steady, **transition_error(run, learnt)})


CMI = BankRecipe("cmi", "CMI", _cmi, cmi_budget)
FAST = BankRecipe("fast_dfkd", "Fast-DFKD", _fast, fast_budget)
NAYER = BankRecipe("nayer", "NAYER", _nayer, nayer_budget)
_DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
_PAPER = {**WIDE_RESNETS, "augmentation": "crop_flip"}
_NETWORKS = "WRN-40-2 of 94.87 % to WRN-16-1"


register(
    Recipe(
        name="cmi",
        title="CMI: contrastive model inversion",
        summary="A fresh generator and its latents are optimised for every batch, against stored statistics, classes, the "
        "student, and the likeness to all earlier images. The control's generators stay as they are drawn.",
        paper="Fang et al.: Contrastive Model Inversion for Data-Free Knowledge Distillation, IJCAI 2021",
        config=CMIRecipeSettings,
        arms=CMI.arms,
        measure=CMI.measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published(
                "cmi", "cifar10", 90.01, "Fang et al., IJCAI 2021 (CMI)", "readme", f"{_NETWORKS}, pre-inverted images"
            ),
            *REAL_DATA,
        ),
        datasets=_DATASETS,
        presets={
            "digits": {
                **DISTILLED_DIGITS,
                "rounds": 10,
                "method": CMISettings(**SMALL, steps=40, student_steps=100, negatives=256, feature_bank=1200),
            },
            "cifar10": {**_PAPER, "rounds": 200, "method": CMISettings()},
        },
    )
)
register(
    Recipe(
        name="fast-dfkd",
        title="Fast-DFKD: inversion in a few steps from a start that learns",
        summary="Batches are inverted in ten steps from the parameters of a generator that learns to be a good start "
        "(first-order meta-learning). The control's generator stays as it was drawn.",
        paper="Fang et al.: Up to 100× Faster Data-free Knowledge Distillation, AAAI 2022",
        config=FastRecipeSettings,
        arms=FAST.arms,
        measure=FAST.measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published("fast_dfkd", "cifar10", 89.29, "Fang et al., AAAI 2022 (Fast-10)", "readme", _NETWORKS),
            *REAL_DATA,
        ),
        datasets=_DATASETS,
        presets={
            "digits": {
                **DISTILLED_DIGITS,
                "rounds": 40,
                "method": FastSettings(**SMALL, warm_up=5, student_steps=30),
            },
            "cifar10": {**_PAPER, "rounds": 220, "method": FastSettings()},
        },
    )
)
register(
    Recipe(
        name="nayer",
        title="NAYER: noisy layers over embeddings of labels",
        summary="Images are made from embeddings of their labels (one-hot: there is no text model here) through a layer that is "
        "drawn for every batch, and inverted in forty steps. The control's generator stays as it was drawn.",
        paper="Tran et al.: NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free KD, CVPR 2024",
        config=NAYERRecipeSettings,
        arms=NAYER.arms,
        measure=NAYER.measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published(
                "nayer",
                "cifar10",
                95.21,
                "Tran et al., CVPR 2024 (300 epochs)",
                "recalled",
                differs="ResNet-34 to ResNet-18, embeddings by a text model",
            ),
            *REAL_DATA,
        ),
        datasets=_DATASETS,
        presets={
            "digits": {
                **DISTILLED_DIGITS,
                "rounds": 10,
                "method": NAYERSettings(**SMALL, warm_up=2, student_steps=120),
            },
            "cifar10": {**_PAPER, "rounds": 400, "method": NAYERSettings(student_steps=400)},
        },
    )
)

__all__ = ["BankRecipe", "BankRecipeSettings", "CMIRecipeSettings", "FastRecipeSettings", "NAYERRecipeSettings"]
