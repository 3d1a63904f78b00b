"""Black-box extraction with a pool of images of something else: Knockoff Nets and what followed it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack
from dfke_jax.core.types import Array
from dfke_jax.data.augment import affine
from dfke_jax.data.csv_files import uniform_rows
from dfke_jax.experiments.bench.registry import TABLE, Recipe, register
from dfke_jax.experiments.bench.settings import DENSE, DIGITS
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.extraction.attacks import AttackRecipe, AttackRun, EndpointSettings, check_points
from dfke_jax.experiments.extraction.views import QUERIES
from dfke_jax.extraction import (
    SMALL_CLONE,
    ActiveThiefSettings,
    BanditSettings,
    DissectorSettings,
    JacobianSettings,
    PoolAttackSettings,
    active_thief,
    adaptive_knockoff,
    copycat,
    dissector,
    jacobian_augmentation,
    knockoff,
    random_attack,
)
from dfke_jax.oracle import rows_per_step
from dfke_jax.synthesis.fitting import fitted
from dfke_jax.synthesis.shapes import synthetic_shapes
from dfke_jax.synthesis.starts import start_images

UNIFORM = "uniform"
"""The pool of tables that needs no data: rows drawn uniformly from what every column may be."""
SHAPES = "shapes"
"""The pool that needs no data: pictures of random shapes."""
GROUPS = 10


@dataclasses.dataclass(frozen=True)
class PoolExtractionSettings(EndpointSettings):
    """What recipes of attacks with a pool have in common."""

    budgets: tuple[int, ...] = (10_000, 20_000)
    """Rows that may be asked; one attack is run from the beginning for each."""
    pool_dataset: str = SHAPES
    """Data set whose training images are the pool, or shapes for pictures of random shapes; with a table, uniform for random
    rows, or another table. It holds at least twice the largest budget: a smaller one is completed by rotated, scaled and shifted
    copies, of tables by random rows."""
    attack: PoolAttackSettings = PoolAttackSettings(rows_per_step=1000, clone=SMALL_CLONE)
    """How the attack runs."""


@dataclasses.dataclass(frozen=True)
class NoisePoolSettings(PoolExtractionSettings):
    """The same of attacks that do not choose, whose control asks noise."""

    noise: Literal["uniform", "smooth"] = "smooth"
    """Noise that stands for the pool in the control."""


@dataclasses.dataclass(frozen=True)
class BanditRecipeSettings(PoolExtractionSettings):
    """Settings of the adaptive Knockoff."""

    attack: BanditSettings = BanditSettings(clone=SMALL_CLONE, learner_steps=1)
    """How the attack runs."""


@dataclasses.dataclass(frozen=True)
class ActiveThiefRecipeSettings(PoolExtractionSettings):
    """Settings of ActiveThief."""

    attack: ActiveThiefSettings = ActiveThiefSettings(
        validation=0.0, clone=SMALL_CLONE, selector="k_center", round_steps=400
    )
    """How the attack runs: ten rounds, whatever the budget."""


@dataclasses.dataclass(frozen=True)
class JacobianRecipeSettings(NoisePoolSettings):
    """Settings of Jacobian-based augmentation; the seeds are drawn from the pool."""

    attack: JacobianSettings = JacobianSettings(clone=dataclasses.replace(SMALL_CLONE, steps=1000, learning_rate=1e-3))
    """How the attack runs: six doublings, whatever the budget."""


@dataclasses.dataclass(frozen=True)
class DissectorRecipeSettings(PoolExtractionSettings):
    """Settings of the Black-box Dissector."""

    attack: DissectorSettings = DissectorSettings(rows_per_step=1000, clone=SMALL_CLONE)
    """How the attack runs."""


class ImagePool(NamedTuple):
    """Images to ask.

    Attributes:
      images: (N, H, W, C), uint8 or float32. groups: (N,) int32, of the policy of the adaptive Knockoff.
      num_groups: Z.
    """

    images: Array
    groups: Array
    num_groups: int


def image_pool(config: Any, bench: Workbench, count: int) -> ImagePool:
    """The pool of a recipe, with at least `count` images.

    A data set with fewer is completed by randomly rotated, scaled and shifted copies of its images, which the notes of
    the result say. Groups are the data set's classes; for shapes, tenths of the images by their mean level.

    Args:
      config: with a field ``pool_dataset``. bench: of the run; its first seed draws what is random.
    """
    shape, key = bench.dataset.shape, bench.key(config.seed, "pool")
    if (schema := bench.dataset.schema) is not None:
        return _row_pool(config, bench, schema, count)
    if config.pool_dataset == UNIFORM:
        raise InputError("the pool uniform is of tables; with images take shapes, or a data set")
    if config.pool_dataset == SHAPES:
        images = synthetic_shapes(key, count, shape)
        rank = jnp.argsort(jnp.argsort(images.mean((1, 2, 3))))
        return ImagePool(images, (rank * GROUPS // count).astype(jnp.int32), GROUPS)
    found = data.load(config.pool_dataset, data_dir=bench.data_dir)
    if found.name == bench.dataset.name:
        bench.notes.append("The pool is the victim's own training set: this is no attack with unrelated images.")
    images = found.train.images
    labels = np.asarray(found.train.labels) if found.labelled else np.zeros(len(images), np.int32)
    if images.shape[1:] != shape:
        images = fitted(images, shape)
    groups = jnp.asarray(labels, jnp.int32)
    images = jnp.asarray(images)
    if (missing := count - len(images)) > 0:
        bench.notes.append(
            f"The pool {config.pool_dataset} has {len(images):,} images; {missing:,} rotated, scaled and shifted copies "
            "complete it."
        )
        chosen = jnp.arange(missing) % len(images)
        images = images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)
        moved = jax.jit(affine(0.35, (0.7, 1.15), shape[0] / 7))(key, images[chosen])
        images, groups = jnp.concatenate([images, moved]), jnp.concatenate([groups, groups[chosen]])
    return ImagePool(images, groups, max(found.num_classes, 1))


def _row_pool(config: Any, bench: Workbench, schema: data.Schema, count: int) -> ImagePool:
    """The pool of a table: random rows, or another table's of the same width, completed by random ones."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(bench.key(config.seed, "pool"))))
    if config.pool_dataset == SHAPES:
        raise InputError(f"{config.dataset} is a table, and shapes are pictures; take the pool {UNIFORM}, or a table")
    given = np.zeros((0, *bench.dataset.shape), np.float32)
    if config.pool_dataset != UNIFORM:
        given = data.load(config.pool_dataset, data_dir=bench.data_dir).train.images
        if given.shape[1:] != bench.dataset.shape:
            raise InputError(
                f"{config.pool_dataset} has rows of {given.shape[1:]}, and the data of {bench.dataset.shape}"
            )
        if len(given) < count:
            bench.notes.append(f"The pool has {len(given):,} rows; {count - len(given):,} random ones complete it.")
    drawn = uniform_rows(schema, rng, max(count - len(given), 0))
    rows = jnp.asarray(np.concatenate([given, drawn]))
    rank = jnp.argsort(jnp.argsort(rows.mean((1, 2, 3))))
    return ImagePool(rows, (rank * GROUPS // len(rows)).astype(jnp.int32), GROUPS)


def _prepare(bench: Workbench) -> ImagePool:
    config: PoolExtractionSettings = bench.config  # type: ignore[assignment]
    check_points(config, bench.dataset)
    return image_pool(config, bench, 2 * max(config.budgets))


# ---- attacks


def _on_pool(attack: Callable[..., Attack], **options: Any) -> Callable[[AttackRun], Attack]:
    """An attack that is given the clone, the pool, what is answered and its settings."""
    return lambda run: attack(run.clone, run.material.images, run.answers, run.settings, **options)


def _bandit(run: AttackRun) -> Attack:
    pool = run.material
    return adaptive_knockoff(run.clone, pool.images, pool.groups, pool.num_groups, run.answers, run.settings)


def _jacobian(run: AttackRun) -> Attack:
    images, count = run.material.images, run.settings.rows_per_step
    chosen = jax.random.permutation(run.bench.key(run.seed, "seeds"), len(images))[:count]
    return jacobian_augmentation(run.clone, images[chosen], run.answers, run.settings)


# ---- controls


def _on_noise(run: AttackRun) -> AttackRun:
    """Noise in the place of the pool."""
    shape = (run.settings.budget, *run.bench.dataset.shape)
    images = start_images(run.config.noise, run.bench.key(run.seed, "noise"), shape)
    return run._replace(material=run.material._replace(images=images))


# ---- what is asked, to look at


def _rows_of_pool(run: AttackRun, state: Any, learnt: Any) -> Array:
    return run.material.images[state.labelled.learnt.indices[:500]]


def _rows_made(run: AttackRun, state: Any, learnt: Any) -> Array:
    return state.images[-500:] if hasattr(state, "images") else _rows_of_pool(run, state, learnt)


def _recipe(name: str, label: str, attack: Callable[[AttackRun], Attack], **options: Any) -> AttackRecipe:
    def rows(settings: Any) -> int:
        return settings.rounds * rows_per_step(name, batch=settings.rows_per_step)

    of_pool = {
        "rows": rows,
        "steps": lambda settings: settings.rounds,
        "updates": lambda settings: settings.clone.steps,
        "pictures": _rows_of_pool,
        "control_label": "Random selection",
    }
    return AttackRecipe(name, label, attack=attack, **{**of_pool, **options})


_AT_RANDOM = _on_pool(random_attack)  # the same pool, budget, answers and training, in random order
_NOISE: dict[str, Any] = {"control_label": "Noise for a pool", "without": _on_noise}
KNOCKOFF = _recipe("knockoff", "Knockoff", _on_pool(knockoff), **_NOISE)
BANDIT = dataclasses.replace(
    _recipe("knockoff", "Knockoff, bandit", _bandit, control=_AT_RANDOM),
    name="knockoff_bandit",
    updates=lambda settings: settings.clone.steps + settings.rounds * settings.learner_steps,
)
ACTIVE_THIEF = _recipe(
    "active_thief",
    "ActiveThief",
    _on_pool(active_thief),
    control=_AT_RANDOM,
    updates=lambda settings: (
        settings.clone.steps + (settings.rounds - 1) * (settings.round_steps or settings.clone.steps)
    ),
)
COPYCAT = _recipe("copycat", "Copycat", _on_pool(copycat), **_NOISE)
DISSECTOR = _recipe(
    "dissector",
    "Dissector",
    _on_pool(dissector),
    control=_on_pool(random_attack, hard=True),
    pictures=_rows_made,
    updates=lambda settings: settings.clone.steps * settings.rounds,
)
JBDA = _recipe(
    "jbda",
    "Jacobian augmentation",
    _jacobian,
    **{**_NOISE, "control_label": "Seeds of noise"},
    rows=lambda settings: rows_per_step("jbda", seeds=settings.rows_per_step, rounds=settings.augmentations),
    pictures=_rows_made,
    updates=lambda settings: settings.clone.steps * (settings.augmentations + 1),
)

_PRESETS = {
    "digits": {**DIGITS, "budgets": (500, 1_000)},
    "mnist": {"pool_dataset": "digits"},
    "fashion_mnist": {"pool_dataset": "mnist"},
}
_ROWS = {**DENSE, "pool_dataset": UNIFORM, "budgets": (500, 1_000)}
_SMALL = {"attack": PoolAttackSettings(rows_per_step=100, clone=SMALL_CLONE)}
_TENTHS = {**_PRESETS, "digits": {**_PRESETS["digits"], **_SMALL}}
_SMALL_DISSECTOR = DissectorSettings(rows_per_step=100, pseudo_rows=100, clone=SMALL_CLONE)
_NOTE = "which pool was asked there is not known to us"

register(
    Recipe(
        name="knockoff",
        title="Knockoff Nets on a pool of unrelated images",
        summary="Asks a public pool in random order and trains the clone on the probabilities answered. The control asks noise.",
        paper="Orekondy, Schiele, Fritz: Knockoff Nets, CVPR 2019",
        config=NoisePoolSettings,
        arms=KNOCKOFF.arms,
        measure=KNOCKOFF.measure,
        prepare=_prepare,
        views=(QUERIES,),
        published=KNOCKOFF.reruns((10_000, 91.5), (20_000, 95.9), note=_NOTE),
        presets={**_TENTHS, TABLE: {**_ROWS, **_SMALL, "noise": "uniform"}},
        tables=True,
    )
)
register(
    Recipe(
        name="knockoff-bandit",
        title="Knockoff Nets with a policy over the pool's classes",
        summary="A gradient bandit chooses the class of the next image by certainty, diversity and loss of the answers. The "
        "control asks the same pool in random order and trains the same way.",
        paper="Orekondy, Schiele, Fritz: Knockoff Nets, CVPR 2019, section 4.2",
        config=BanditRecipeSettings,
        arms=BANDIT.arms,
        measure=BANDIT.measure,
        prepare=_prepare,
        views=(QUERIES,),
        presets={**_PRESETS, TABLE: _ROWS},
        tables=True,
    )
)
register(
    Recipe(
        name="active-thief",
        title="ActiveThief: active learning on a pool",
        summary="Ten rounds; in each the clone names the images of the pool that it wants answered and is trained anew on all "
        "answers. The control asks the same pool in random order and trains once, the same way, on as many answers.",
        paper="Pal, Gupta, Shukla, Kanade, Shevade, Ganapathy: ActiveThief, AAAI 2020",
        config=ActiveThiefRecipeSettings,
        arms=ACTIVE_THIEF.arms,
        measure=ACTIVE_THIEF.measure,
        prepare=_prepare,
        views=(QUERIES,),
        published=ACTIVE_THIEF.reruns((10_000, 92.1), (20_000, 96.9), note=_NOTE),
        presets={**_PRESETS, TABLE: _ROWS},
        tables=True,
    )
)
register(
    Recipe(
        name="copycat",
        title="Copycat CNN: stolen labels of unrelated images",
        summary="Learns the largest class alone, with rotation, scaling, shifts and noise that are not asked again. The control "
        "asks noise.",
        paper="Correia-Silva, Berriel, Badue, de Souza, Oliveira-Santos: Copycat CNN, IJCNN 2018",
        config=NoisePoolSettings,
        arms=COPYCAT.arms,
        measure=COPYCAT.measure,
        prepare=_prepare,
        views=(QUERIES,),
        published=COPYCAT.reruns((10_000, 90.1), (20_000, 95.7), note=_NOTE),
        presets=_TENTHS,
    )
)
register(
    Recipe(
        name="dissector",
        title="Black-box Dissector: labels of erased images",
        summary="Asks images and then variants of them without what the clone attends to; learns labels, and its own on images "
        "that were not asked. The control asks as many images at random and learns their labels.",
        paper="Wang, Zhang, Liu, Zhang, Wang, Xue, Xiao: Black-box Dissector, ECCV 2022",
        config=DissectorRecipeSettings,
        arms=DISSECTOR.arms,
        measure=DISSECTOR.measure,
        prepare=_prepare,
        views=(QUERIES,),
        published=DISSECTOR.reruns((10_000, 88.9), (20_000, 94.3), note=_NOTE),
        presets={**_PRESETS, "digits": {**_PRESETS["digits"], "attack": _SMALL_DISSECTOR}},
    )
)
register(
    Recipe(
        name="jbda",
        title="Jacobian-based data set augmentation",
        summary="A few seeds from the pool, doubled six times by steps along the sign of the clone's gradient; labels alone are "
        "learnt. The control begins from noise.",
        paper="Papernot, McDaniel, Goodfellow, Jha, Celik, Swami: Practical Black-Box Attacks, AsiaCCS 2017",
        config=JacobianRecipeSettings,
        arms=JBDA.arms,
        measure=JBDA.measure,
        prepare=_prepare,
        views=(QUERIES,),
        presets={**_PRESETS, TABLE: {**_ROWS, "noise": "uniform"}},
        tables=True,
    )
)

__all__ = [
    "ACTIVE_THIEF",
    "BANDIT",
    "COPYCAT",
    "DISSECTOR",
    "JBDA",
    "KNOCKOFF",
    "SHAPES",
    "UNIFORM",
    "ActiveThiefRecipeSettings",
    "BanditRecipeSettings",
    "DissectorRecipeSettings",
    "ImagePool",
    "JacobianRecipeSettings",
    "NoisePoolSettings",
    "PoolExtractionSettings",
    "image_pool",
]
