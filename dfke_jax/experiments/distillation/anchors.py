"""The anchors: what real data gives."""

import dataclasses

import numpy as np

from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.registry import TABLE, Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import (
    AIRBENCH,
    DENSE,
    DISTILLED_DIGITS,
    AnchoredSettings,
    DistillationSettings,
    GeneratedSettings,
)
from dfke_jax.experiments.bench.students import (
    ARBITRARY,
    ASKED,
    SHAPES,
    distilled_from_arbitrary,
    distilled_from_real_data,
)
from dfke_jax.synthesis.targets import class_similarity

DAFL_STUDENT = "their student has 15,738 parameters, lenet5_half 35,820"

SLIDES = "Nayak et al., ICML 2019 (ZSKD), as in Mopuri's tutorial of 2023, 'Performance' (MNIST)"
"""Where figures of ZSKD and of its anchors on MNIST are printed."""
CIFAR10_SLIDES = "Nayak et al., ICML 2019 (ZSKD), as in Mopuri's tutorial of 2023, 'Performance' (CIFAR-10)"
ALEXNETS, VGGS, VGG_RESNET, RESNETS = (
    ("alexnet", "alexnet_half"),
    ("vgg19", "vgg11"),
    ("vgg19", "resnet18"),
    ("resnet18", "resnet18_half"),
)
"""Teacher and student of the four pairs that the published table on CIFAR-10 has."""
_CIFAR10 = {  # teacher, student from scratch, student distilled with real data
    ALEXNETS: (83.03, 80.04, 80.08),
    VGGS: (87.99, 84.19, 84.93),
    VGG_RESNET: (87.99, 84.45, 86.58),
    RESNETS: (86.54, 85.51, 86.31),
}


def cifar10_figures(arm: str) -> tuple[Published, ...]:
    """What the slides print for ``teacher``, ``scratch`` or ``real_data`` on CIFAR-10, a figure a pair of networks."""
    place = ("teacher", "scratch", "real_data").index(arm)
    return tuple(
        Published(arm, "cifar10", values[place], CIFAR10_SLIDES, "slides", networks=pair)
        for pair, values in _CIFAR10.items()
    )


REAL_DATA = (
    Published("real_data", "mnist", 98.91, "Chen et al., ICCV 2019 (DAFL), Table 1", "readme", differs=DAFL_STUDENT),
    Published("real_data", "mnist", 99.25, SLIDES, "slides"),
    *cifar10_figures("real_data"),
    Published("real_data", "fashion_mnist", 89.66, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
)


@dataclasses.dataclass(frozen=True)
class AnchorSettings(AnchoredSettings):
    """Settings of the anchors."""


def anchor_arms(config: DistillationSettings, *, real: bool = True, scratch: bool = False) -> list[Arm]:
    """The arms that real data gives: the teacher, the student from scratch, the student distilled with real data; and, beside
    a generator, those of images that nobody made.
    """
    arms = [Arm("teacher", f"Teacher ({config.teacher})", "teacher")]
    if scratch:
        arms.append(Arm("scratch", f"Student from scratch ({config.student})", "anchor"))
    if real:
        arms.append(Arm("real_data", "Distilled with real data", "anchor"))
    if isinstance(config, GeneratedSettings) and config.arbitrary:
        arms += [Arm(name, label, "baseline") for name, label in ARBITRARY.items()]
    return arms


def measure_anchors(run: Run) -> None:
    """Trains and records those of `anchor_arms` that the recipe has."""
    c, training = run.config, run.bench.supervised_budget
    run.record_teacher()
    if "scratch" in run.arms and not run.dataset.labelled:
        run.leave("scratch", "Without labels there is no student from scratch.")
    elif "scratch" in run.arms:
        run.record("scratch", run.bench.supervised("scratch", c.student, run.seed), budget=training)
    if "real_data" in run.arms:
        budget = budgets.distilled(c, real=len(run.dataset.train))
        run.record("real_data", distilled_from_real_data(run), budget=budget)
    for kind in ARBITRARY if isinstance(c, GeneratedSettings) and c.arbitrary else ():
        asked = ASKED * c.arbitrary if kind == SHAPES else 0
        budget = budgets.distilled(c, c.arbitrary, augment=c.real_augmentation, other_rows=asked)
        run.record(kind, distilled_from_arbitrary(run, kind), budget=budget)


def keep_similarity(run: Run) -> None:
    """Keeps the first seed's class-similarity matrix, for the report."""
    if run.first:
        np.savez(
            run.bench.out / "similarity.npz",
            class_similarity=np.asarray(class_similarity(run.teacher.head_kernel)),
            class_names=np.asarray(run.dataset.class_names),
        )


def arms(config: AnchorSettings) -> list[Arm]:
    """Teacher, student from scratch, student distilled with real data."""
    return anchor_arms(config, scratch=True)


def measure(run: Run[AnchorSettings]) -> None:
    """All of them, of one seed."""
    measure_anchors(run)
    keep_similarity(run)


register(
    Recipe(
        name="anchors",
        title="Anchors: training and distilling with real data",
        summary="Trains the teacher and the student by cross-entropy, and distils the student on the real training images: "
        "the figures that every data-free method is measured against.",
        paper="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015",
        config=AnchorSettings,
        arms=arms,
        measure=measure,
        published=(
            Published("teacher", "mnist", 99.34, SLIDES, "slides"),
            Published("scratch", "mnist", 98.92, SLIDES, "slides"),
            *cifar10_figures("teacher"),
            *cifar10_figures("scratch"),
            Published("teacher", "fashion_mnist", 90.84, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
            Published("scratch", "fashion_mnist", 89.43, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
            *REAL_DATA,
        ),
        time="5 min on 2 CPU cores (mnist, 3 seeds)",
        datasets=("digits", "mnist", "fashion_mnist", "cifar10"),
        tables=True,
        presets={
            "digits": DISTILLED_DIGITS,
            TABLE: {**DENSE, "real_augmentation": "none"},
            # its teacher knows no shifted clothes, and what it says of classes it has excluded is noise
            "fashion_mnist": {"real_augmentation": "none", "temperature": 1.0},
            "cifar10": {**AIRBENCH, "seeds": 1, "student": "airbench94_half"},
        },
    )
)

__all__ = [
    "ALEXNETS",
    "CIFAR10_SLIDES",
    "DAFL_STUDENT",
    "REAL_DATA",
    "RESNETS",
    "SLIDES",
    "VGGS",
    "VGG_RESNET",
    "AnchorSettings",
    "anchor_arms",
    "cifar10_figures",
    "keep_similarity",
    "measure_anchors",
]
