"""Data impressions (ZSKD) and class impressions."""

import dataclasses

from dfke_jax.core.method import Method
from dfke_jax.distillation import class_impressions, data_impressions
from dfke_jax.distillation.class_impressions import ClassImpressionSettings
from dfke_jax.distillation.data_impressions import ImpressionSettings
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, PoolSettings, augmentation
from dfke_jax.experiments.distillation.anchors import (
    ALEXNETS,
    CIFAR10_SLIDES,
    REAL_DATA,
    RESNETS,
    SLIDES,
    VGG_RESNET,
    VGGS,
    keep_similarity,
)
from dfke_jax.experiments.distillation.syntheses import SynthesisRecipe, measure_syntheses, synthesis_arms
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE

_PRIOR = ImpressionSettings(
    steps=200, start="smooth", start_mean=(0.0, 1.0), start_sd=(0.0, 1.0), total_variation=(0.002, 0.032)
)
"""Blind to the data: level and contrast of the start images are uniform over the box."""
_DARK = dataclasses.replace(_PRIOR, start_mean=(0.0, 0.0), start_sd=(0.5, 0.5))
"""Smooth strokes on a black ground: knows that much of MNIST."""


@dataclasses.dataclass(frozen=True)
class DataImpressionSettings(PoolSettings):
    """Settings of data impressions."""

    other_augmentations: tuple[str, ...] = ()
    """Augmentations to distil the same samples, and the same controls, with as well."""
    synthesis: ImpressionSettings = ImpressionSettings()
    """How the impressions are made."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.other_augmentations:
            augmentation(name)


def _data_impressions(config: DataImpressionSettings) -> list[SynthesisRecipe]:
    def make(run: Run, control: bool) -> Method:
        return data_impressions(run.teacher, config.synthesis, config.samples, config.synthesis_batch, control=control)

    others = config.other_augmentations
    steps = config.synthesis.steps
    return [SynthesisRecipe("data_impressions", "Data impressions", make, steps, augmentations=others)]


@dataclasses.dataclass(frozen=True)
class ClassImpressionRecipeSettings(PoolSettings):
    """Settings of class impressions."""

    synthesis: ClassImpressionSettings = ClassImpressionSettings()
    """How the impressions are made."""


def _class_impressions(config: ClassImpressionRecipeSettings) -> list[SynthesisRecipe]:
    def make(run: Run, control: bool) -> Method:
        return class_impressions(run.teacher, config.synthesis, config.samples, config.synthesis_batch, control=control)

    return [SynthesisRecipe("class_impressions", "Class impressions", make, config.synthesis.steps)]


def _measure(run: Run, methods: list[SynthesisRecipe]) -> None:
    """Anchors, noise, a method and its control; and the similarity of classes, which targets are drawn by."""
    measure_syntheses(run, methods)
    keep_similarity(run)


_DIGITS = {**DISTILLED_DIGITS, "samples": 1000}
_ZSKD = (
    Published("data_impressions", "mnist", 98.77, SLIDES, "slides", "24,000 impressions"),
    *(
        Published("data_impressions", "cifar10", value, CIFAR10_SLIDES, "slides", "40,000 impressions", networks=pair)
        for pair, value in ((ALEXNETS, 69.56), (VGGS, 74.10), (VGG_RESNET, 74.76), (RESNETS, 81.10))
    ),
    Published(
        "data_impressions",
        "fashion_mnist",
        79.62,
        "Nayak et al., ICML 2019 (ZSKD)",
        "recalled",
        "48,000 impressions",
    ),
    *REAL_DATA,
)
_WITH_PRIOR = tuple(
    dataclasses.replace(figure, differs="ZSKD has no image prior and starts from noise")
    if figure.arm == "data_impressions"
    else figure
    for figure in _ZSKD
)
"""Data impressions out of smooth images under total variation are another method than the one those figures are of."""
_CIFAR10 = {
    "teacher": ALEXNETS[0],
    "student": ALEXNETS[1],
    "teacher_steps": 20_000,
    "samples": 40_000,
    "synthesis_batch": 1000,
    "augmentation": "published",
    "real_augmentation": "shift",
    # 500 passes over the impressions in batches of 64
    "distillation_steps": 312_500,
    "distillation_learning_rate": 1e-3,
    "synthesis": ImpressionSettings(steps=1500, learning_rate=1e-3),
}
"""The published budget and rates on CIFAR-10; for accelerators. What the teachers were trained with is not known."""
_ZSKD_PAPER = "Nayak, Mopuri, Shaj, Babu, Chakraborty: Zero-Shot Knowledge Distillation in Deep Networks, ICML 2019"

register(
    Recipe(
        name="zskd",
        title="Zero-shot knowledge distillation, as published",
        summary="Data impressions whose softmax targets come from a Dirichlet over the teacher's last-layer class "
        "similarities, with both published scalings applied for real and no prior on the image.",
        paper=_ZSKD_PAPER,
        config=DataImpressionSettings,
        arms=lambda config: synthesis_arms(config, _data_impressions(config)),
        measure=lambda run: _measure(run, _data_impressions(run.config)),
        views=(SIDE_BY_SIDE,),
        published=_ZSKD,
        time="12 min on one of two shared CPU cores (mnist, 3 seeds, 3,000 impressions of 200 steps)",
        presets={
            "digits": {**_DIGITS, "synthesis": ImpressionSettings(steps=200)},
            "mnist": {"synthesis": ImpressionSettings(steps=200)},
            "fashion_mnist": {"synthesis": ImpressionSettings(steps=200)},
            "cifar10": _CIFAR10,
        },
        datasets=("digits", "mnist", "fashion_mnist", "cifar10"),
    )
)

register(
    Recipe(
        name="data-impressions",
        title="Data impressions with an image prior",
        summary="Data impressions that start from smooth noise and pay for total variation. Level and contrast of the start "
        "are random, blind to the data, but on MNIST, where its ground is black. The control is distilled from the same start "
        "images without any synthesis.",
        paper=_ZSKD_PAPER,
        config=DataImpressionSettings,
        arms=lambda config: synthesis_arms(config, _data_impressions(config)),
        measure=lambda run: _measure(run, _data_impressions(run.config)),
        views=(SIDE_BY_SIDE,),
        published=_WITH_PRIOR,
        time="2 min on 2 CPU cores (digits, 3 seeds); 14 min on one of two shared CPU cores (mnist, 3 seeds)",
        presets={
            "digits": {**_DIGITS, "synthesis": dataclasses.replace(_PRIOR, steps=100)},
            "mnist": {"synthesis": _DARK},
            "fashion_mnist": {"synthesis": _PRIOR},
        },
    )
)

register(
    Recipe(
        name="class-impressions",
        title="Class impressions",
        summary="Images that a class's logit rises on, by gradient ascent with random transformations between the steps, "
        "each stopped at a confidence threshold of its own.",
        paper="Mopuri, Uppala, Babu: Ask, Acquire, and Attack: Data-free UAP Generation using Class Impressions, ECCV 2018",
        config=ClassImpressionRecipeSettings,
        arms=lambda config: synthesis_arms(config, _class_impressions(config)),
        measure=lambda run: _measure(run, _class_impressions(run.config)),
        views=(SIDE_BY_SIDE,),
        published=REAL_DATA,
        time="29 min on one of two shared CPU cores (fashion_mnist, 3 seeds)",
        presets={"digits": _DIGITS},
    )
)

__all__ = ["ClassImpressionRecipeSettings", "DataImpressionSettings"]
