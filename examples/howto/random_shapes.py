"""The recipe random-shapes: a student distilled on pictures of random shapes.

This is a whole recipe: settings, a function from settings to arms, and its registration.
"""

import dataclasses

import jax

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.experiments import Arm, Recipe, Workbench, register
from dfke_jax.experiments.bench.settings import DIGITS, TransferSettings
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


def execute(config: ShapeSettings, bench: Workbench) -> list[Arm]:
    """The teacher, the student from scratch, shapes, and the same pixels without any shape."""
    arms = bench.anchors(real=False, scratch=True)
    method = Arm("random_shapes", "Random shapes", "method")
    control = Arm("random_shapes_control", "The same pixels, shuffled", "control")
    for arm in (method, control):
        arm.budget = bench.distilled_budget(config.samples)
        for seed in bench.seeds:
            teacher = bench.teacher(seed)
            # Both arms have the method's key: the same pictures, which the control shuffles.
            key = bench.key(seed, method.name)
            images = synthetic_shapes(key, config.samples, bench.dataset.shape)
            if arm is control:
                images = shuffled(jax.random.fold_in(key, 1), images)
            student = bench.distil(arm.name, seed, teacher, images)
            bench.record(arm, student, teacher)
    return [*arms, method, control]


RECIPE = register(
    Recipe(
        name="random-shapes",
        title="Distillation on pictures of random shapes",
        summary="Distils a student on pictures of ellipses, rectangles, triangles and lines. "
        "The control is distilled on the same pictures with their pixels shuffled.",
        paper="Nayak, Mopuri, Chakraborty: Effectiveness of Arbitrary Transfer Sets, WACV 2021",
        config=ShapeSettings,
        execute=execute,
        presets={"digits": {**DIGITS, "distillation_steps": 1000, "samples": 1000}},
    )
)
