"""Black-box extraction with generators: what a clone learns from answers to images that nobody took."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack
from dfke_jax.core.types import Array
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.settings import DIGITS
from dfke_jax.experiments.bench.workbench import Answers
from dfke_jax.experiments.extraction.attacks import (
    AttackRecipe,
    AttackRun,
    EndpointSettings,
    ExtractionSettings,
    paid,
    plain_oracle,
)
from dfke_jax.experiments.extraction.pool import KNOCKOFF
from dfke_jax.experiments.extraction.views import QUERIES
from dfke_jax.extraction import (
    FIRST_CLONE,
    SMALL_CLONE,
    SMALL_DFME,
    SMALL_DISGUIDE,
    SMALL_MAZE,
    SMALL_MEGEX,
    Adversaries,
    CloneTraining,
    DFMESettings,
    DFMSSettings,
    DisagreementSettings,
    GenerativeSettings,
    MAZESettings,
    MEGEXSettings,
    PoolAttackSettings,
    adversarial_pretraining,
    dfme,
    dfms,
    disagreement,
    diversity_tuning,
    first_samples,
    knockoff,
    maze,
    megex,
    vote,
)
from dfke_jax.extraction.common import SMALL
from dfke_jax.extraction.dfme import check_differences
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DCGANGenerator, DFMEGenerator, draw_latents
from dfke_jax.nn.training import Training, trained
from dfke_jax.oracle import Explanation, explanation_oracle, rows_per_step
from dfke_jax.oracle import explanation as explanation_named
from dfke_jax.synthesis import precise
from dfke_jax.synthesis.shapes import synthetic_shapes


@dataclasses.dataclass(frozen=True)
class DFMERecipeSettings(EndpointSettings):
    """Settings of data-free model extraction."""

    attack: DFMESettings = SMALL_DFME
    """How the attack runs; replay_batches=0 is the published algorithm."""

    def __post_init__(self):
        super().__post_init__()
        check_differences(self.answers, type(self.attack).__name__.removesuffix("Settings"))


@dataclasses.dataclass(frozen=True)
class MAZERecipeSettings(DFMERecipeSettings):
    """Settings of MAZE."""

    attack: MAZESettings = SMALL_MAZE
    """How the attack runs."""


@dataclasses.dataclass(frozen=True)
class MEGEXRecipeSettings(ExtractionSettings):
    """Settings of MEGEX."""

    attack: MEGEXSettings = SMALL_MEGEX
    """How the attack runs; the generator climbs the published distance of logits, or what objective and diversity say."""
    explanation: str = "gradient"
    """What the endpoint explains and the attack reads: KIND or KIND:key=value,... (smooth_grad:samples=8,classes=top)."""

    @property
    def explained(self) -> Explanation:
        """What is explained."""
        return explanation_named(self.explanation)

    def __post_init__(self):
        super().__post_init__()
        if self.explained.kind == "abs":
            raise InputError("MEGEX needs the direction of a gradient and 'abs' explanations have lost it")


@dataclasses.dataclass(frozen=True)
class DisagreementRecipeSettings(EndpointSettings):
    """Settings of attacks by disagreeing clones."""

    attack: DisagreementSettings = SMALL_DISGUIDE
    """How the attack runs."""


@dataclasses.dataclass(frozen=True)
class DualStudentsRecipeSettings(DisagreementRecipeSettings):
    """Settings of Dual Students."""

    attack: DisagreementSettings = dataclasses.replace(SMALL_DISGUIDE, objective="l1", diversity=0.0)
    """How the attack runs."""


@dataclasses.dataclass(frozen=True)
class DFMSRecipeSettings(EndpointSettings):
    """Settings of DFMS."""

    reveal: Literal["logits", "probabilities", "label"] = "label"
    """What the victim's endpoint answers."""
    budgets: tuple[int, ...] = (50_000, 200_000)
    """Rows that may be asked; one attack is run from the beginning for each."""
    shapes: int = 10_000
    """Synthetic images of shapes that stand for the proxy data."""
    pretraining_steps: int = 1000
    """Steps of the generative adversarial network on them before anything is asked."""
    first_rows: int = 0
    """Stage 1: rows of every budget that are asked for the first clone, half of them shapes; 0 for no such stage."""
    first_clone: CloneTraining = SMALL_CLONE
    """How that clone is trained."""
    tuning_steps: int = 0
    """Stage 1b: steps in which the generator learns to reach all classes of the first clone."""
    attack: DFMSSettings = DFMSSettings(**{**SMALL, "batch_size": 64})
    """How the attack runs."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.first_rows, self.tuning_steps) < 0 or self.first_rows > 2 * self.shapes:
            raise InputError(
                "first_rows and tuning_steps must not be negative, and half of first_rows are shapes, got "
                f"{self.first_rows}, {self.tuning_steps} and {self.shapes} shapes"
            )
        if self.tuning_steps and not self.first_rows:
            raise InputError("tuning_steps need a first clone: set first_rows")
        if self.first_rows:
            self.attack.with_budget(self.budgets[0] - self.first_rows)

    @property
    def first(self) -> PoolAttackSettings:
        """How stage 1 runs."""
        step = math.gcd(self.first_rows, 1000)
        return PoolAttackSettings(self.first_rows, rows_per_step=step, clone=self.first_clone)


def _pictures(generator: type[DFMEGenerator] | type[DCGANGenerator], run: AttackRun, state: Any, learnt: Any) -> Array:
    """What the generator makes in the end."""
    made = generator(run.bench.dataset.shape, run.settings.width, run.settings.latent)
    z = draw_latents(run.bench.key(run.seed, "pictures"), (500,), made)
    return jax.jit(made.apply)(state.generator.variables, z)  # pyright: ignore[reportReturnType]


def _on_answers(attack: Callable[..., Attack]) -> Callable[[AttackRun], Attack]:
    """An attack that is given the clone, its settings, what is answered and the number of classes."""
    return lambda run: attack(run.clone, run.settings, run.answers, run.bench.dataset.num_classes)


def _megex(run: AttackRun) -> Attack:
    return megex(run.clone, run.settings, run.bench.dataset.num_classes, run.config.explained)


class DFMSStart(NamedTuple):
    """What DFMS begins with: proxy images, generator and discriminator, and the clone of stage 1."""

    images: Array
    adversaries: Adversaries
    clone: Training | None


def _open_dfms(run: AttackRun, oracle: Any) -> tuple[DFMSStart, int]:
    """Stage 0, and stages 1 and 1b where they are wanted; the control's generator goes no further than stage 0."""
    config, bench, batch = run.config, run.bench, run.settings.batch_size
    images = synthetic_shapes(bench.key(run.seed, "shapes"), config.shapes, bench.dataset.shape)
    pretraining = adversarial_pretraining(images, config.attack)
    begun = bench.stage("synthesis", "pretraining", run.seed, pretraining, config.pretraining_steps, rows=batch)
    if not config.first_rows:
        return DFMSStart(images, begun, None), 0
    pool = first_samples(bench.key(run.seed, "first"), begun, images, config.first_rows, config.attack)
    attack = knockoff(run.clone, pool, run.answers, config.first)
    here, name = run._replace(settings=config.first), f"{run.where}dfms_first"
    first, _ = paid(KNOCKOFF, here, attack, oracle, config.first_rows, name, "dfms_first/attack", chunk=1)
    if config.tuning_steps and run.settings.generator_rate:
        clone = trained(run.clone, first.clone)
        tuning = diversity_tuning(clone, images, config.attack, begun)
        name, steps = f"{run.where}tuning", config.tuning_steps
        begun = bench.stage("synthesis", name, run.seed, tuning, steps, rows=batch, draws_as="tuning")
    return DFMSStart(images, begun, first.clone), config.first_clone.steps


def _dfms(run: AttackRun) -> Attack:
    images, adversaries, first = run.opened
    classes = run.bench.dataset.num_classes
    return dfms(run.clone, images, run.settings, run.answers, classes, start=adversaries, first=first)


def _recipe(
    name: str,
    label: str,
    attack: Callable[[AttackRun], Attack],
    formula: str,
    sizes: Callable[[Any], dict[str, int]] = lambda settings: {},
    generator: type[DFMEGenerator] | type[DCGANGenerator] = DFMEGenerator,
    **options: Any,
) -> AttackRecipe:
    def rows(settings: GenerativeSettings) -> int:
        named = {"batch": settings.batch_size, "clone_steps": settings.clone_batches, **sizes(settings)}
        return settings.steps * rows_per_step(formula, **named)

    def without(run: AttackRun) -> AttackRun:
        return run._replace(settings=dataclasses.replace(run.settings, generator_rate=0.0))

    return AttackRecipe(
        name,
        label,
        rows=rows,
        steps=lambda settings: settings.steps,
        updates=lambda settings: settings.steps * (settings.clone_batches + settings.extra_clone_updates),
        attack=attack,
        control_label="Generator that never learns",
        pictures=functools.partial(_pictures, generator),
        without=without,
        **options,
    )


def _directions(settings: DFMESettings) -> dict[str, int]:
    return {"generator_steps": 1, "directions": settings.differences.rows_per_sample - 1}


def _voting(clone: Any, state: Any) -> Answers:
    return Answers(vote(clone, state))


def _precise(victim: Classifier, config: ExtractionSettings) -> Any:
    """Differences need full float32."""
    return precise(plain_oracle(victim, config))


DFME = _recipe("dfme", "DFME", _on_answers(dfme), "dfme", _directions, oracle=_precise)
MAZE = _recipe("maze", "MAZE", _on_answers(maze), "maze", _directions, oracle=_precise)
MEGEX = _recipe(
    "megex",
    "MEGEX",
    _megex,
    "megex",
    lambda settings: {"generator_steps": 1},
    oracle=lambda victim, config: explanation_oracle(victim, config.explained, config.answers),
    explains=True,
)
DISGUIDE = _recipe("disguide", "DisGUIDE", _on_answers(disagreement), "disguide", read=_voting)
DUAL_STUDENTS = dataclasses.replace(DISGUIDE, name="dual_students", label="Dual Students")
DFMS = _recipe(
    "dfms",
    "DFMS",
    _dfms,
    "dfms",
    generator=DCGANGenerator,
    opening=_open_dfms,
    opening_rows=lambda config: config.first_rows,
)

CIFAR10 = {
    "seeds": 1,
    "teacher": "resnet34",
    "student": "resnet18",
    "teacher_steps": 6000,
    "teacher_batch": 256,
    "teacher_learning_rate": 1e-3,
    "teacher_augmentation": "crop_flip",
    "precision": "bfloat16",
    "transfer_epsilon": 8 / 255,
    "points": 10,
}
"""For a GPU: the published networks."""


_PRESETS = {"digits": {**DIGITS, "budgets": (2_000, 10_000)}}
_DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")

register(
    Recipe(
        name="dfme",
        title="Data-free model extraction (DFME)",
        summary="A generator climbs the disagreement of clone and victim along differences of the victim's answers; the clone "
        "learns the answers, old ones many times. The control's generator never learns.",
        paper="Truong, Maini, Walls, Papernot: Data-Free Model Extraction, CVPR 2021",
        config=DFMERecipeSettings,
        arms=DFME.arms,
        measure=DFME.measure,
        views=(QUERIES,),
        published=(
            *DFME.reruns((10_000, 63.4), (20_000, 72.7), (50_000, 83.4), (100_000, 89.3)),
            DFME.published(20_000_000, "cifar10", 88.1, "Truong et al., CVPR 2021", "victim of 95.5 %"),
        ),
        datasets=_DATASETS,
        presets={**_PRESETS, "cifar10": {**CIFAR10, "attack": DFMESettings(), "budgets": (20_000_000,)}},
    )
)
register(
    Recipe(
        name="maze",
        title="MAZE: zeroth-order extraction with replay",
        summary="As DFME, with the KL divergence of the answers, ten differences for every gradient, and updates of the clone "
        "on old answers as published. The control's generator never learns.",
        paper="Kariyappa, Prakash, Qureshi: MAZE, CVPR 2021",
        config=MAZERecipeSettings,
        arms=MAZE.arms,
        measure=MAZE.measure,
        views=(QUERIES,),
        presets=_PRESETS,
    )
)
register(
    Recipe(
        name="megex",
        title="MEGEX: extraction with explanations",
        summary="As DFME, from an endpoint that explains its answers by input gradients, which take the place of differences.",
        paper="Miura, Hasegawa, Shibahara: MEGEX, 2021",
        config=MEGEXRecipeSettings,
        arms=MEGEX.arms,
        measure=MEGEX.measure,
        views=(QUERIES,),
        presets=_PRESETS,
    )
)
register(
    Recipe(
        name="disguide",
        title="DisGUIDE: disagreement of two clones",
        summary="Two clones learn the answers and a generator looks for images on which they disagree, without asking the "
        "victim.",
        paper="Rosenthal, Enouen, Pham, Tan: DisGUIDE, AAAI 2023",
        config=DisagreementRecipeSettings,
        arms=DISGUIDE.arms,
        measure=DISGUIDE.measure,
        views=(QUERIES,),
        presets=_PRESETS,
    )
)
register(
    Recipe(
        name="dual-students",
        title="Dual Students",
        summary="As DisGUIDE, with the difference of the clones' logits in the place of the deviation of their probabilities.",
        paper="Beetham, Kardan, Mian, Shah: Dual Student Networks for Data-Free Model Stealing, ICLR 2023",
        config=DualStudentsRecipeSettings,
        arms=DUAL_STUDENTS.arms,
        measure=DUAL_STUDENTS.measure,
        views=(QUERIES,),
        presets=_PRESETS,
    )
)
register(
    Recipe(
        name="dfms",
        title="DFMS: stealing from hard labels",
        summary="A GAN trained on synthetic shapes asks for labels; its generator is pushed towards all of the clone's "
        "classes. With other answers than labels it is DFMS-SL.",
        paper="Sanyal, Addepalli, Babu: Towards Data-Free Model Stealing in a Hard Label Setting, CVPR 2022",
        config=DFMSRecipeSettings,
        arms=DFMS.arms,
        measure=DFMS.measure,
        views=(QUERIES,),
        published=(
            DFMS.published(8_000_000, "cifar10", 85.92, "Sanyal et al., CVPR 2022", "victim a ResNet-18 of 93.7 %"),
        ),
        datasets=_DATASETS,
        presets={
            **_PRESETS,
            "cifar10": {
                **CIFAR10,
                "attack": DFMSSettings(),
                "budgets": (8_000_000,),
                "shapes": 50_000,
                "pretraining_steps": 20_000,
                "first_rows": 50_000,
                "first_clone": FIRST_CLONE.clone,
                "tuning_steps": 39_000,
            },
        },
    )
)

__all__ = [
    "CIFAR10",
    "DFME",
    "DFMS",
    "DISGUIDE",
    "DUAL_STUDENTS",
    "MAZE",
    "MEGEX",
    "DFMERecipeSettings",
    "DFMSRecipeSettings",
    "DisagreementRecipeSettings",
    "DualStudentsRecipeSettings",
    "MAZERecipeSettings",
    "MEGEXRecipeSettings",
]
