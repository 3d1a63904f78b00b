"""RDSKD: distillation on a generator that was trained on the teacher alone, without weights to choose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.distillation import RDSKDSettings, SamplingSettings, gan_sampling, rdskd, rdskd_generator
from dfke_jax.distillation.gan_sampling import sampling_cost
from dfke_jax.distillation.rdskd import rdskd_cost
from dfke_jax.evaluation import histogram_entropy
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.arm import Role
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, GeneratedSettings
from dfke_jax.experiments.bench.steadiness import transition_error, watched_stage
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.syntheses import sample_diversity
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.nn.training import trained

LABELS: dict[str, tuple[str, Role]] = {
    "rdskd": ("RDSKD", "method"),
    "rdskd_control": ("Generator that never learns", "control"),
    "undamped": ("Losses added without damping", "baseline"),
    "alike": ("RDSKD without inter-sample diversity", "baseline"),
}
_CHANGES = {
    "rdskd": {},
    "rdskd_control": {"generator_rate": 0.0},
    "undamped": {"damped": False},
    "alike": {"diversity": 0.0},
}


@dataclasses.dataclass(frozen=True)
class RDSKDRecipeSettings(GeneratedSettings):
    """Settings of RDSKD."""

    temperature: float = 10.0
    """Temperature of distillation."""
    iterations: int = 2400
    """Updates of the generator; the student learns afterwards, for `distillation_steps`."""
    method: RDSKDSettings = RDSKDSettings(batch_size=128, width=16, latent=64)
    """How the generator learns; narrower than published, for CPUs."""

    def __post_init__(self):
        super().__post_init__()
        if self.iterations < 1:
            raise InputError(f"iterations must be at least 1, got {self.iterations}")

    @property
    def sampling(self) -> SamplingSettings:
        """How the student learns from fresh samples."""
        return SamplingSettings(
            batch_size=self.distillation_batch,
            latent=self.method.latent,
            steps=self.distillation_steps,
            latent_steps=0,
            temperature=self.temperature,
            student_rate=self.distillation_learning_rate,
        )


def arms(config: RDSKDRecipeSettings) -> list[Arm]:
    """Anchors, the method, a generator that never learns, and the method without each of its two ideas."""
    budget = budgets.summed(
        rdskd_cost(config.method).times(config.iterations),
        sampling_cost(config.sampling).times(config.distillation_steps),
    )
    return [*anchor_arms(config), *(Arm(name, *label, budget=budget) for name, label in LABELS.items())]


def measure(run: Run[RDSKDRecipeSettings]) -> None:
    """Trains the generators, and a student on fresh samples of each."""
    measure_anchors(run)
    c, teacher, student = run.config, run.teacher, run.network(run.config.student)
    latents = jax.random.normal(run.key("pictures"), (500, c.method.latent))
    for name in LABELS:
        settings = dataclasses.replace(c.method, **_CHANGES[name])
        state = run.stage(
            "synthesis", f"{name}/generator", rdskd(teacher, settings), c.iterations,
            rows=settings.batch_size, draws_as="rdskd/generator",
        )  # fmt: skip
        generator = rdskd_generator(teacher, settings, state)
        images = jax.jit(_made)(generator, latents)
        logits = teacher(images)
        run.keep(name, images, jnp.argmax(logits, -1))
        entropy = histogram_entropy(np.asarray(jax.nn.softmax(logits)).mean(0), normalised=True)
        learning = gan_sampling(generator, teacher, student, c.sampling)
        last, steady = watched_stage(
            run, f"{name}/student", learning, c.distillation_steps, student,
            rows=c.distillation_batch, draws_as="rdskd/student",
        )  # fmt: skip
        learnt = trained(student, last)
        seen = {"class_entropy": entropy, **sample_diversity(run, images)}
        run.record(name, learnt, {**seen, **steady, **transition_error(run, learnt)})


def _made(generator, latents):
    return generator(latents)


register(
    Recipe(
        name="rdskd",
        title="RDSKD: robustness and diversity seeking data-free distillation",
        summary="A generator learns images that the teacher is sure of, that cover its classes and differ where its answers do "
        "not; losses that rise are penalised exponentially, so that no weights are chosen. A student then learns from fresh "
        "samples. The control's generator never learns; two more arms leave out one idea each.",
        paper="Han, Park, Wang, Liu: Robustness and Diversity Seeking Data-Free Knowledge Distillation, ICASSP 2021",
        config=RDSKDRecipeSettings,
        arms=arms,
        measure=measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=REAL_DATA,
        datasets=("digits", "mnist", "fashion_mnist", "cifar10"),
        presets={
            "digits": {
                **DISTILLED_DIGITS,
                "iterations": 600,
                "method": RDSKDSettings(batch_size=128, width=8, latent=32),
            },
            "cifar10": {
                "teacher": "resnet34",
                "student": "resnet18",
                "teacher_augmentation": "crop_flip",
                "teacher_steps": 40_000,
                "method": RDSKDSettings(),
            },
        },
    )
)

__all__ = ["RDSKDRecipeSettings"]
