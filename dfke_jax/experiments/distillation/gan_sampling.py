"""A ready GAN as a transfer set: fresh samples whose latents are made hard for the student."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.distillation import DeGANSettings, SamplingSettings, adapt_statistics, degan, gan_sampling
from dfke_jax.distillation.degan import degan_cost
from dfke_jax.distillation.gan_sampling import hard_latents, sampling_cost
from dfke_jax.evaluation import histogram_entropy
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.arm import Role
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, GeneratedSettings
from dfke_jax.experiments.bench.steadiness import transition_error, watched_stage
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.syntheses import sample_diversity
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DCGANGenerator
from dfke_jax.nn.precision import apply
from dfke_jax.nn.registry import describe
from dfke_jax.nn.training import trained
from dfke_jax.synthesis.fitting import fitted

ADAPTED = 1000
"""Unlabelled images whose statistics a student with batch normalisation takes over."""


@dataclasses.dataclass(frozen=True)
class GANSamplingRecipeSettings(GeneratedSettings):
    """Settings of distillation on a GAN's samples."""

    student: str = "lenet5_half_bn"
    """Network of the student; with batch normalisation its statistics are adapted as well."""
    temperature: float = 1.0
    """Temperature of distillation."""
    gan_data: str = ""
    """Data set whose training images the GAN knows; empty for the task's own, as published, which is not data-free."""
    gan_steps: int = 2000
    """Updates of the GAN's generator and discriminator."""
    gan: DeGANSettings = DeGANSettings(batch_size=128, width=16, entropy=0.0, diversity=0.0)
    """How the GAN is trained; it knows nothing of the teacher."""
    latent_steps: int = 2
    """Moves of every latent to where student and teacher differ; the control's stay where they are drawn."""
    latent_rate: float = 0.1
    """Length of a move, in units of a latent's norm."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.gan_steps, self.latent_steps) < 1:
            raise InputError(
                f"gan_steps and latent_steps must be at least 1, got {self.gan_steps} and {self.latent_steps}"
            )
        if self.gan.entropy or self.gan.diversity:
            raise InputError("the GAN knows nothing of the teacher: entropy and diversity must be 0; degan has them")
        _ = self.sampling

    @property
    def sampling(self) -> SamplingSettings:
        """How the student learns."""
        return SamplingSettings(
            batch_size=self.distillation_batch,
            latent=self.gan.latent,
            steps=self.distillation_steps,
            latent_steps=self.latent_steps,
            latent_rate=self.latent_rate,
            temperature=self.temperature,
            student_rate=self.distillation_learning_rate,
        )


NAME = "gan_sampling"
UNTRAINED = f"{NAME}_untrained"


def _plans(config: GANSamplingRecipeSettings) -> dict[str, tuple[str, Role, float, SamplingSettings]]:
    """Arm -> its label, role, the GAN's rate and how its student learns."""
    rate, hard = config.gan.generator_rate, config.sampling
    still = dataclasses.replace(hard, latent_steps=0)
    return {
        NAME: ("GAN samples with hard latents", "method", rate, hard),
        f"{NAME}_control": ("GAN samples as they come", "control", rate, still),
        UNTRAINED: ("Generator that never learns", "baseline", 0.0, still),
    }


def arms(config: GANSamplingRecipeSettings) -> list[Arm]:
    """Anchors, hard samples, samples as they come, those of an untrained generator, and adapted statistics."""
    made = []
    for name, (label, role, rate, sampling) in _plans(config).items():
        spent = sampling_cost(sampling).times(config.distillation_steps)
        spent = budgets.summed(spent, degan_cost(config.gan).times(config.gan_steps)) if rate else spent
        made.append(Arm(name, label, role, budget=spent))
    if describe(config.student).batch_norm:
        for arm in made[:2]:
            budget = {**arm.budget, "real_samples": arm.budget["real_samples"] + ADAPTED}
            label = f"{arm.label}, statistics adapted"
            name = f"adapted{'_control' * (arm.role == 'control')}"
            made.append(Arm(name, label, arm.role, budget=budget))
    return [*anchor_arms(config), *made]


def prepare(bench: Workbench) -> np.ndarray:
    """The images that the GAN knows, as large as the data's."""
    config: GANSamplingRecipeSettings = bench.config  # type: ignore[assignment]
    if not config.gan_data:
        return bench.dataset.train.images
    return fitted(data.load(config.gan_data, data_dir=bench.data_dir).train.images, bench.dataset.shape)


def measure(run: Run[GANSamplingRecipeSettings]) -> None:
    """Trains the GAN, and a student on fresh samples in each way."""
    measure_anchors(run)
    c, shape, known = run.config, run.dataset.shape, jnp.asarray(run.shared)
    teacher, student = run.teacher, run.network(c.student)
    generator = DCGANGenerator(shape, c.gan.width, c.gan.latent)
    latents = jax.random.normal(run.key("pictures"), (500, c.gan.latent))
    gan = degan(teacher, known, c.gan)
    trained_gan = run.stage("synthesis", f"{NAME}/gan", gan, c.gan_steps, rows=c.gan.batch_size)
    untrained = jax.jit(_begun)(gan, run.key(f"{NAME}/gan"))
    for name, (_, _, rate, sampling) in _plans(c).items():
        state = trained_gan if rate else untrained
        made = Partial(_images, Static(generator), state.generator.variables)
        last, steady = watched_stage(
            run, f"{name}/student", gan_sampling(made, teacher, student, sampling), c.distillation_steps, student,
            rows=c.distillation_batch, draws_as=f"{NAME}/student",
        )  # fmt: skip
        learnt = trained(student, last)
        images = _drawn(sampling, made, teacher, learnt, latents)
        logits = teacher(images)
        run.keep(name, images, jnp.argmax(logits, -1))
        entropy = histogram_entropy(np.asarray(jax.nn.softmax(logits)).mean(0), normalised=True)
        seen = {"class_entropy": entropy, **sample_diversity(run, images)}
        run.record(name, learnt, {**seen, **steady, **transition_error(run, learnt)})
        arm = name.replace(NAME, "adapted")
        if arm in run.arms:
            adapted = adapt_statistics(learnt, jnp.asarray(run.dataset.train.images[:ADAPTED]))
            run.record(arm, adapted, transition_error(run, adapted))
    run.note(
        "The GAN knows images of the task itself, as in the paper: this is not data-free in the strict sense."
        if not c.gan_data
        else f"The GAN knows images of {c.gan_data}.",
        f"Statistics are adapted to {ADAPTED} unlabelled training images.",
    )


def _begun(method: Method, key: Key) -> PyTree:
    return method.init(key)


def _images(generator: Static, variables: PyTree, z: Array) -> Array:
    return apply(generator.value, variables, z, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _drawn(sampling: SamplingSettings, made: Partial, teacher: Classifier, student: Classifier, z: Array) -> Array:
    """The images that a student at its end would learn from."""
    hard, _ = hard_latents(made, teacher, student, sampling, z)
    return made(hard)


register(
    Recipe(
        name="gan-sampling",
        title="A GAN as a transfer set: fresh samples with hard latents",
        summary="A student learns the teacher's answers to samples of a GAN, drawn anew at every step, whose latents were moved "
        "to where student and teacher differ. The control learns from samples as they come; an untrained generator stands "
        "beside it, and students whose normalisation statistics are adapted to unlabelled images.",
        paper="Besnier, Jain, Bursuc, Cord, Pérez: This Dataset Does Not Exist: Training Models from Generated Images, ICASSP 2020",
        config=GANSamplingRecipeSettings,
        arms=arms,
        measure=measure,
        prepare=prepare,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=REAL_DATA,
        presets={
            "digits": {
                **DISTILLED_DIGITS,
                "gan_steps": 500,
                "gan": DeGANSettings(batch_size=64, width=16, latent=32, entropy=0.0, diversity=0.0),
            },
        },
    )
)

__all__ = ["GANSamplingRecipeSettings"]
