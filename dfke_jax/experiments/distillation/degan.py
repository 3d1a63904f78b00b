"""DeGAN: distillation on the samples of a GAN of proxy images that knows the teacher's answers."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.distillation import DeGANSettings, degan, degan_images
from dfke_jax.distillation.degan import degan_cost
from dfke_jax.evaluation import histogram_entropy
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, GeneratedSettings, TransferSettings
from dfke_jax.experiments.bench.students import distil_watched
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.syntheses import sample_diversity
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.synthesis.fitting import fitted
from dfke_jax.synthesis.shapes import synthetic_shapes

SHAPES = "shapes"
LABELS = {
    "degan": ("DeGAN", "method"),
    "degan_control": ("Generator that never learns", "control"),
    "plain_gan": ("GAN of the proxy, without the teacher", "baseline"),
}


@dataclasses.dataclass(frozen=True)
class DeGANRecipeSettings(TransferSettings, GeneratedSettings):
    """Settings of DeGAN."""

    proxy: str = "digits"
    """Another data set whose training images the discriminator takes for given; ``shapes`` for drawn ones."""
    iterations: int = 2000
    """Updates of generator and discriminator."""
    samples: int = 10_000
    """Images that the student is distilled on."""
    method: DeGANSettings = DeGANSettings(batch_size=256, width=16)
    """How the method runs; narrower than published, for CPUs."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.iterations, self.samples) < 1 or not self.proxy:
            raise InputError("iterations and samples must be at least 1, and a proxy be named")
        if self.proxy == self.dataset:
            raise InputError(f"{self.proxy} is the teacher's own data and no proxy")


def arms(config: DeGANRecipeSettings) -> list[Arm]:
    """Anchors, DeGAN, a generator that never learns, and the GAN without the teacher."""
    made = []
    for name, (label, role) in LABELS.items():
        learning = degan_cost(_settings(config, name)).times(config.iterations)
        budget = budgets.distilled(config, config.samples)
        budget = {key: budget.get(key, 0) + learning.get(key, 0) for key in {**learning, **budget}}
        made.append(Arm(name, label, role, budget=budget))  # type: ignore[arg-type]
    return [*anchor_arms(config), *made]


def _settings(config: DeGANRecipeSettings, name: str) -> DeGANSettings:
    changes = {
        "degan": {},
        "degan_control": {"generator_rate": 0.0},
        "plain_gan": {"entropy": 0.0, "diversity": 0.0},
    }
    return dataclasses.replace(config.method, **changes[name])


def prepare(bench: Workbench) -> np.ndarray:
    """The proxy images, as large as the data's."""
    config: DeGANRecipeSettings = bench.config  # type: ignore[assignment]
    shape = bench.dataset.shape
    if config.proxy == SHAPES:
        return np.asarray(synthetic_shapes(bench.key(config.seed, "proxy"), 2000, shape))
    return fitted(data.load(config.proxy, data_dir=bench.data_dir).train.images, shape)


def measure(run: Run[DeGANRecipeSettings]) -> None:
    """Trains the three generators, and a student on the samples of each."""
    measure_anchors(run)
    c, shape, proxy = run.config, run.dataset.shape, jnp.asarray(run.shared)
    for name in LABELS:
        settings = _settings(c, name)
        state = run.stage(
            "synthesis", f"{name}/gan", degan(run.teacher, proxy, settings), c.iterations,
            rows=settings.batch_size, draws_as="degan/gan",
        )  # fmt: skip
        images = degan_images(state, settings, shape, run.key("degan/images"), c.samples)
        answers = run.teacher.predict(np.asarray(images))
        run.keep(name, images, answers.argmax(1))
        counts = np.bincount(answers.argmax(1), minlength=run.dataset.num_classes)
        entropy = histogram_entropy(counts / counts.sum(), normalised=True)
        learnt, steady = distil_watched(run, name, images)
        run.record(name, learnt, {"histogram_entropy": entropy, **sample_diversity(run, images), **steady})


register(
    Recipe(
        name="degan",
        title="DeGAN: samples of proxy images that cover the teacher's classes",
        summary="A GAN learns images of another data set while the teacher's mean answer to its samples is kept balanced; the "
        "student is distilled on its samples. Beside it a generator that never learns, and the GAN without the teacher.",
        paper="Addepalli, Nayak, Chakraborty, Babu: DeGAN: Data-Enriching GAN for Retrieving Representative Samples "
        "from a Trained Classifier, AAAI 2020",
        config=DeGANRecipeSettings,
        arms=arms,
        measure=measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        prepare=prepare,
        published=(
            Published("degan", "fashion_mnist", 83.79, "Addepalli et al., AAAI 2020 (DeGAN)", "recalled", "SVHN as proxy"),
            Published("degan", "cifar10", 80.55, "Addepalli et al., AAAI 2020 (DeGAN)", "recalled", "AlexNet, six classes of CIFAR-100 as proxy"),
            *REAL_DATA,
        ),
        datasets=("digits", "mnist", "fashion_mnist", "cifar10"),
        presets={"digits": {**DISTILLED_DIGITS, "proxy": SHAPES, "iterations": 500, "samples": 2000},
                 "cifar10": {"proxy": SHAPES, "teacher": "alexnet", "student": "alexnet_half", "method": DeGANSettings()}},
    )
)  # fmt: skip

__all__ = ["DeGANRecipeSettings"]
