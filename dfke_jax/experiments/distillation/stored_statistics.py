"""Transfer sets bound to stored statistics: generators of class groups, and pixels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.distillation import (
    GroupSettings,
    WithinSettings,
    group_images,
    knowledge_within,
    statistics_generators,
)
from dfke_jax.distillation.statistics_generators import group_cost
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, GeneratedSettings, PoolSettings, TransferSettings
from dfke_jax.experiments.bench.students import distil_watched
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.syntheses import (
    SynthesisRecipe,
    measure_syntheses,
    pool_metrics,
    sample_diversity,
    synthesis_arms,
)
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.synthesis.pool import Pool


@dataclasses.dataclass(frozen=True)
class GroupRecipeSettings(TransferSettings, GeneratedSettings):
    """Settings of generators of class groups."""

    teacher: str = "lenet5_bn"
    """Network of the teacher; it needs batch normalisation."""
    samples: int = 3000
    """Images drawn for the student, a multiple of what the generators make at once."""
    generator_steps: int = 2000
    """Updates of every generator."""
    method: GroupSettings = GroupSettings(width=16, latent=64)
    """How the generators run."""

    def __post_init__(self):
        super().__post_init__()
        size = self.method.batch_size
        if self.generator_steps < 1 or self.samples < 1 or self.samples % size:
            raise InputError(
                f"generator_steps must be at least 1 and samples a multiple of {size}, the generators' batch, got "
                f"{self.generator_steps} and {self.samples}"
            )


def group_arms(config: GroupRecipeSettings) -> list[Arm]:
    """Anchors, the generators, and the same that never learn."""
    spent = budgets.distilled(config, config.samples)
    cost = group_cost(config.method).times(config.generator_steps)
    trained = {
        **spent,
        "teacher_rows": spent["teacher_rows"] + cost["teacher_rows"],
        "generator_updates": cost["generator_updates"],
    }
    return [
        *anchor_arms(config),
        Arm("statistics_generators", "Generators of class groups", "method", budget=trained),
        Arm("statistics_generators_control", "Generators that never learn", "control", budget=spent),
    ]


def measure_groups(run: Run[GroupRecipeSettings]) -> None:
    """Trains the generators, draws the transfer sets and distils from them."""
    measure_anchors(run)
    c, name = run.config, "statistics_generators"
    method = statistics_generators(run.teacher, c.method)
    learnt = run.stage("synthesis", f"{name}/generators", method, c.generator_steps, rows=c.method.batch_size)
    drawn = jax.jit(_init)(method, run.key(f"{name}/start"))
    draw = jax.jit(group_images, static_argnums=1)
    keys = jax.random.split(run.key(f"{name}/images"), c.samples // c.method.batch_size)
    for arm, state in ((name, learnt), (f"{name}_control", drawn)):
        batches = [draw(run.teacher, c.method, state, key) for key in keys]
        images, labels = (jnp.concatenate(parts) for parts in zip(*batches, strict=True))
        run.keep(arm, images, labels)
        pool = Pool(images, labels, jnp.int32(len(labels)), ())
        learnt, steady = distil_watched(run, arm, images)
        run.record(arm, learnt, {**pool_metrics(pool, run.teacher), **sample_diversity(run, images), **steady})


def _init(method: Method, key: Any) -> Any:
    return method.init(key)


@dataclasses.dataclass(frozen=True)
class WithinRecipeSettings(PoolSettings):
    """Settings of the knowledge within."""

    teacher: str = "lenet5_bn"
    """Network of the teacher; it needs batch normalisation."""
    samples: int = 1280
    """Synthesised images."""
    synthesis_batch: int = 256
    """Images whose statistics are matched together."""
    synthesis: WithinSettings = WithinSettings(steps=200)
    """How images are optimised."""


def _within(config: WithinRecipeSettings) -> SynthesisRecipe:
    def make(run: Run[Any], control: bool) -> Method:
        return knowledge_within(run.teacher, config.synthesis, config.samples, config.synthesis_batch, control=control)

    return SynthesisRecipe("knowledge_within", "The knowledge within", make, config.synthesis.steps)


def within_arms(config: WithinRecipeSettings) -> list[Arm]:
    """Anchors, noise, the method and its control."""
    return synthesis_arms(config, [_within(config)])


def measure_within(run: Run[WithinRecipeSettings]) -> None:
    """All of them, of one seed."""
    measure_syntheses(run, [_within(run.config)])


register(
    Recipe(
        name="statistics-generators",
        title="Generators bound to stored statistics, one a group of classes",
        summary="Generators learn to make images of their classes whose mixture has the statistics of the teacher's "
        "normalisation layers; no student takes part. The control's generators never learn.",
        paper="Luo, Sandler, Lin, Zhmoginov, Howard: Large-Scale Generative Data-Free Distillation, 2020",
        config=GroupRecipeSettings,
        arms=group_arms,
        measure=measure_groups,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published(
                "statistics_generators",
                "cifar10",
                95.02,
                "Luo et al., 2020",
                "recalled",
                differs="ResNet-34 to ResNet-18",
            ),
            *REAL_DATA,
        ),
        presets={
            "digits": {
                **DISTILLED_DIGITS,
                "samples": 1000,
                "generator_steps": 200,
                "method": GroupSettings(width=8, latent=32, batch_size=200),
            }
        },
    )
)
register(
    Recipe(
        name="knowledge-within",
        title="The knowledge within: stored Gaussians, classes and smoothness",
        summary="Pixels are optimised so that the inputs of the teacher's normalisation layers have the stored means and "
        "variances (divergence of Gaussians), of a class and smooth. The control's start images stay as they are.",
        paper="Haroush, Hubara, Hoffer, Soudry: The Knowledge Within: Methods for Data-Free Model Compression, CVPR 2020",
        config=WithinRecipeSettings,
        arms=within_arms,
        measure=measure_within,
        views=(SIDE_BY_SIDE,),
        published=REAL_DATA,
        presets={"digits": {**DISTILLED_DIGITS, "samples": 1024, "synthesis": WithinSettings(steps=100)}},
    )
)

__all__ = ["GroupRecipeSettings", "WithinRecipeSettings"]
