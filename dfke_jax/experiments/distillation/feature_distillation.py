"""Distillation of hidden layers: hints, attention maps, distances and angles, beside answers alone."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array
from dfke_jax.distillation import (
    AttentionSettings,
    RelationSettings,
    attention_distillation,
    few_shot,
    hint_training,
    hinted,
    knowledge_distillation,
    relation_distillation,
)
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import (
    DISTILLED_DIGITS,
    AnchoredSettings,
    TransferSettings,
    augmentation,
)
from dfke_jax.experiments.bench.steadiness import transition_error, watched_stage
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.nn.training import trained
from dfke_jax.synthesis.shapes import synthetic_shapes
from dfke_jax.synthesis.starts import smooth_noise

Images = Literal["real", "shapes", "smooth_noise"]


@dataclasses.dataclass(frozen=True)
class FeatureSettings(TransferSettings, AnchoredSettings):
    """Settings of distillation of hidden layers."""

    images: Images = "real"
    """What is distilled on: a few real images, pictures of random shapes, or smooth noise."""
    samples: int = 200
    """Images; of real ones equally many of every class."""
    hint_steps: int = 1000
    """Steps of the hint's first stage, out of the distillation's."""
    hint_layer: str = ""
    """The layer that the hint guides; the middle one that both networks have by default."""
    attention: float = 1000.0
    """Weight of the attention maps, in the released units."""
    distance: float = 25.0
    """Weight of the distances between features."""
    angle: float = 50.0
    """Weight of the angles between features."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.hint_steps < self.distillation_steps or self.samples < 1:
            raise InputError(
                "hint_steps must lie between 0 and distillation_steps and samples be at least 1, "
                f"got {self.hint_steps}, {self.distillation_steps} and {self.samples}"
            )


METHODS = {
    "hint": "Hint, then answers",
    "attention": "Attention maps and answers",
    "distance": "Distances and answers",
    "angle": "Angles and answers",
}


def arms(config: FeatureSettings) -> list[Arm]:
    """Every kind of knowledge with one control: the answers alone, for as many steps."""
    methods = [Arm(name, label, "method", control="answers") for name, label in METHODS.items()]
    return [*anchor_arms(config), *methods, Arm("answers", "Answers alone", "control")]


def transfer_images(run: Run[FeatureSettings]) -> Array:
    """What is distilled on."""
    c, train = run.config, run.dataset.train
    if c.images == "real":
        return jnp.asarray(train.images[few_shot(train.labels, c.samples, run.seed)])
    key = run.key("images")
    if c.images == "shapes":
        return synthetic_shapes(key, c.samples, run.dataset.shape)
    return smooth_noise(key, (c.samples, *run.dataset.shape))


def measure(run: Run[FeatureSettings]) -> None:
    """One seed; all arms draw the same batches."""
    measure_anchors(run)
    c, teacher, images = run.config, run.teacher, transfer_images(run)
    student = run.network(c.student)
    rows, steps = c.distillation_batch, c.distillation_steps
    training = {
        "batch_size": rows,
        "learning_rate": c.distillation_learning_rate,
        "augment": augmentation(c.augmentation),
    }

    def relation(distance: float, angle: float) -> Method:
        settings = RelationSettings(distance, angle, temperature=c.temperature)
        return relation_distillation(student, teacher, images, settings, steps=steps, **training)

    first = hint_training(student, teacher, images, layer=c.hint_layer, steps=c.hint_steps, **training)
    guided = hinted(student, run.stage("distillation", "hint/first", first, c.hint_steps, rows=rows))
    left, maps = steps - c.hint_steps, AttentionSettings(c.attention, temperature=c.temperature)
    answers = {"temperature": c.temperature, **training}
    methods = {
        "hint": knowledge_distillation(guided, teacher, images, steps=left, fine_tune=True, **answers),
        "attention": attention_distillation(student, teacher, images, maps, steps=steps, **training),
        "distance": relation(c.distance, 0.0),
        "angle": relation(0.0, c.angle),
        "answers": knowledge_distillation(student, teacher, images, steps=steps, **answers),
    }
    real = c.images == "real"
    budget = {
        "synthetic_samples": 0 if real else c.samples,
        "teacher_rows": steps * rows,
        "distillation_steps": steps,
        "real_samples": c.samples if real else 0,
    }
    for name, method in methods.items():
        state, steady = watched_stage(
            run, f"{name}/student", method, left if name == "hint" else steps, student,
            rows=rows, draws_as="answers/student",
        )  # fmt: skip
        learnt = trained(student, state)
        run.record(name, learnt, {**steady, **transition_error(run, learnt)}, budget=budget)


register(
    Recipe(
        name="feature-distillation",
        title="Feature and relation distillation: hints, attention, distances, angles",
        summary="Distils on a few real images, on random shapes or on noise with what the teacher's hidden layers show: a "
        "hint, attention maps, distances or angles between features. The control learns the answers alone.",
        paper="Romero et al., ICLR 2015 (FitNets); Zagoruyko and Komodakis, ICLR 2017; Park et al., CVPR 2019 (RKD)",
        config=FeatureSettings,
        arms=arms,
        measure=measure,
        labels=True,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=REAL_DATA,
        presets={"digits": {**DISTILLED_DIGITS, "hint_steps": 200}},
    )
)  # fmt: skip

__all__ = ["FeatureSettings", "transfer_images"]
