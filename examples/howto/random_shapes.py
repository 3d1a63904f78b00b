"""The recipe random-shapes: a student distilled on pictures of random shapes.

This is a whole recipe: settings, what is trained, one seed of it, and its registration.
"""

import dataclasses

import jax

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.experiments import Arm, Recipe, Run, register
from dfke_jax.experiments.bench.budgets import distilled
from dfke_jax.experiments.bench.settings import DIGITS, TransferSettings
from dfke_jax.experiments.bench.students import distil
from dfke_jax.experiments.distillation.anchors import anchor_arms, measure_anchors
from dfke_jax.synthesis.shapes import synthetic_shapes


# The groups of settings that a recipe is made of are those whose fields it reads: here data,
# teacher, student, distillation, and the augmentation of a transfer set.
@dataclasses.dataclass(frozen=True)
class ShapeSettings(TransferSettings):
    """Settings of random shapes."""

    samples: int = 3000
    """Pictures to distil on."""

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 1:
            raise InputError(f"samples must be at least 1, got {self.samples}")


def shuffled(key: Key, images: Array) -> Array:
    """The pixels of every image (N, H, W, C) in random places."""
    rows = images.reshape(len(images), -1, images.shape[-1])
    keys = jax.random.split(key, len(images))
    return jax.vmap(jax.random.permutation)(keys, rows).reshape(images.shape)


def arms(config: ShapeSettings) -> list[Arm]:
    """What is trained: the teacher, the student from scratch, the method and its control."""
    method = Arm("random_shapes", "Random shapes", "method")
    control = Arm("random_shapes_control", "The same pixels, shuffled", "control")
    return [*anchor_arms(config, real=False, scratch=True), method, control]


def measure(run: Run[ShapeSettings]) -> None:
    """One seed: trains the networks and records what they reach."""
    measure_anchors(run)
    # Both arms have the method's key: the same pictures, which the control shuffles.
    key = run.key("random_shapes")
    images = synthetic_shapes(key, run.config.samples, run.dataset.shape)
    pixels = shuffled(jax.random.fold_in(key, 1), images)
    budget = distilled(run.config, run.config.samples)
    for name, pictures in (("random_shapes", images), ("random_shapes_control", pixels)):
        run.record(name, distil(run, name, pictures), budget=budget)


RECIPE = register(
    Recipe(
        name="random-shapes",
        title="Distillation on pictures of random shapes",
        summary="Distils a student on pictures of ellipses, rectangles, triangles and lines. "
        "The control is distilled on the same pictures with their pixels shuffled.",
        paper="Nayak, Mopuri, Chakraborty: Effectiveness of Arbitrary Transfer Sets, WACV 2021",
        config=ShapeSettings,
        arms=arms,
        measure=measure,
        presets={"digits": {**DIGITS, "distillation_steps": 1000, "samples": 1000}},
    )
)
