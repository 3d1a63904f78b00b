"""Distillation on unlabelled images in the wild that the teacher chooses."""

import dataclasses
from typing import Any

import jax
import numpy as np

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.distillation import DFNDSettings, dfnd, most_certain, unbalanced
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import (
    DISTILLED_DIGITS,
    AnchoredSettings,
    TransferSettings,
    augmentation,
)
from dfke_jax.experiments.bench.steadiness import student_variables, transition_error, watched_stage
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.synthesis.fitting import fitted
from dfke_jax.synthesis.shapes import synthetic_shapes

SHAPES = "shapes"


@dataclasses.dataclass(frozen=True)
class DFNDRecipeSettings(TransferSettings, AnchoredSettings):
    """Settings of DFND."""

    temperature: float = 2.0
    """Temperature of distillation."""
    wild: tuple[str, ...] = (SHAPES,)
    """What the wild is made of: data sets by name, and ``shapes``, pictures of random shapes."""
    wild_shapes: int = 10_000
    """Pictures of random shapes in the wild."""
    samples: int = 3000
    """Images that are chosen from the wild."""
    teacher_accuracy: float = 0.95
    """Share of the teacher's answers that are right, as stated by whoever gives it."""
    adaptation: float = 1.0
    """Weight of the noisy term."""
    class_weights: bool = True
    """Whether samples are weighed by how seldom their class is answered."""

    def __post_init__(self):
        super().__post_init__()
        if not self.wild or min(self.samples, self.wild_shapes) < 1:
            raise InputError(
                "wild must name something and samples and wild_shapes be at least 1, got "
                f"{self.wild}, {self.samples} and {self.wild_shapes}"
            )
        _ = self.method

    @property
    def method(self) -> DFNDSettings:
        """How the method runs, with the student's training of all recipes."""
        return DFNDSettings(
            teacher_accuracy=self.teacher_accuracy,
            adaptation=self.adaptation,
            class_weights=self.class_weights,
            temperature=self.temperature,
            steps=self.distillation_steps,
            batch_size=self.distillation_batch,
            optimizer="adam",
            learning_rate=self.distillation_learning_rate,
            schedule="cosine",
        )


def arms(config: DFNDRecipeSettings) -> list[Arm]:
    """The method; what it is without its matrix and weights; and random images of the same wild."""
    return [
        *anchor_arms(config),
        Arm("dfnd", "DFND", "method"),
        Arm("chosen", "Chosen images, plain distillation", "baseline"),
        Arm("dfnd_control", "Random images of the wild, plain distillation", "control"),
    ]


def prepare(bench: Workbench) -> np.ndarray:
    """The wild (N, H, W, C), as large as the data's images."""
    config: DFNDRecipeSettings = bench.config  # type: ignore[assignment]
    shape, found = bench.dataset.shape, []
    for name in config.wild:
        if name == SHAPES:
            key = bench.key(config.seed, "wild")
            found.append(np.asarray(synthetic_shapes(key, config.wild_shapes, shape)))
        else:
            found.append(fitted(data.load(name, data_dir=bench.data_dir).train.images, shape))
    wild = np.concatenate(found)
    if config.samples > len(wild):
        raise InputError(f"samples ({config.samples}) are more than the wild has ({len(wild)})")
    return wild


def taught(config: DFNDRecipeSettings, asked: int) -> dict[str, int]:
    """The budget of an arm before whose training the teacher answered so many rows; it answers every batch."""
    rows = config.distillation_steps * config.distillation_batch
    return {**budgets.distilled(config, config.samples), "teacher_rows": rows + asked}


def measure(run: Run[DFNDRecipeSettings]) -> None:
    """One seed; all three arms train alike, on as many images."""
    measure_anchors(run)
    c, teacher, student = run.config, run.teacher, run.network(run.config.student)
    wild: np.ndarray = run.shared
    chosen = wild[most_certain(wild, teacher, c.samples)]
    answers = teacher.predict(chosen).argmax(1)
    run.keep("dfnd", chosen, answers)
    drawn = unbalanced(wild, c.samples, run.seed)
    run.keep("dfnd_control", drawn, teacher.predict(drawn).argmax(1))
    plain = dataclasses.replace(c.method, adaptation=0.0, class_weights=False)
    # to choose them the teacher answers the whole wild, to weigh them those that are chosen
    asked, weighed = len(wild), c.samples * c.class_weights
    described = {"chosen_classes": len(np.unique(answers))}
    plans: list[tuple[str, np.ndarray, DFNDSettings, dict[str, Any], dict[str, int]]] = [
        ("dfnd", chosen, c.method, described, taught(c, asked + weighed)),
        ("chosen", chosen, plain, {}, taught(c, asked)),
        ("dfnd_control", drawn, plain, {}, taught(c, 0)),
    ]
    for name, images, settings, metrics, budget in plans:
        method = dfnd(teacher, student, jax.device_put(images), settings, augment=augmentation(c.augmentation))
        state, steady = watched_stage(
            run, f"{name}/student", method, c.distillation_steps, student,
            variables=student_variables, rows=c.distillation_batch, draws_as="dfnd/student",
        )  # fmt: skip
        learnt = dataclasses.replace(student, variables=student_variables(state))
        metrics = {**metrics, **steady, **transition_error(run, learnt)}
        run.record(name, learnt, metrics, budget=budget)


register(
    Recipe(
        name="dfnd",
        title="DFND: distillation on images in the wild",
        summary="Chooses, out of unlabelled images of anything, those that the teacher is surest of, and distils with an "
        "adaptation matrix that takes over the teacher's mistakes. The control draws images of the same wild at random.",
        paper="Chen et al.: Learning Student Networks in the Wild, CVPR 2021",
        config=DFNDRecipeSettings,
        arms=arms,
        measure=measure,
        prepare=prepare,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published("dfnd", "cifar10", 94.78, "mmrazor, readme of DFND", "readme", "ResNet-34 of 95.34 % to ResNet-18, ImageNet as the wild"),
            *REAL_DATA,
        ),
        datasets=("digits", "mnist", "fashion_mnist", "cifar10"),
        presets={
            "digits": {**DISTILLED_DIGITS, "wild_shapes": 2000, "samples": 1000},
            "mnist": {"wild": (SHAPES, "fashion_mnist"), "teacher_accuracy": 0.99},
            "fashion_mnist": {"wild": (SHAPES, "mnist"), "teacher_accuracy": 0.9},
            "cifar10": {"teacher": "resnet34", "student": "resnet18", "augmentation": "none", "real_augmentation": "none",
                        "wild": ("cifar100",), "samples": 30_000, "teacher_augmentation": "crop_flip"},
        },
    )
)  # fmt: skip

__all__ = ["DFNDRecipeSettings"]
