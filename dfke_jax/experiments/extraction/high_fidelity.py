"""Learning-based extraction at few queries: images without answers, active learning, and both."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Attack
from dfke_jax.core.types import Array
from dfke_jax.evaluation import fgsm, taxonomy, transfer_rate
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DIGITS, augmentation
from dfke_jax.experiments.bench.supervision import supervised_training
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.extraction.attacks import AttackRecipe, AttackRun, CloneSettings, paid
from dfke_jax.experiments.extraction.views import QUERIES
from dfke_jax.extraction import (
    ActiveThiefSettings,
    CloneTraining,
    MixMatchSettings,
    PoolAttackSettings,
    RotationSettings,
    active_thief,
    mixmatch,
    random_attack,
    rotation,
)
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.oracle import Reveal, oracle_for

_PAPER = "Jagielski et al., High Accuracy and High Fidelity Extraction, USENIX Security 2020"
CONTROL = "supervised"
METHODS = {
    "mixmatch": "MixMatch",
    "rotation": "Rotation loss",
    "active": "Active learning",
    "active_mixmatch": "Active learning and MixMatch",
}


@dataclasses.dataclass(frozen=True)
class HighFidelitySettings(CloneSettings):
    """Settings of high-fidelity."""

    own: ClassVar[Literal["network", "answers"] | None] = None

    queries: tuple[int, ...] = (250, 1000)
    """Images that may be asked, multiples of `rounds`; every method is run from the beginning for each."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which of mixmatch, rotation, active and active_mixmatch are run; the control is in any case."""
    reveal: Literal["probabilities", "label"] = "probabilities"
    """What the victim's endpoint answers."""
    victim_share: float = 0.5
    """Share of the training images that the victims learn; the others are the pool, without their labels."""
    rounds: int = 5
    """Of active learning, each of an equal share of the queries; the first is at random."""
    selector: Literal["entropy", "k_center", "dfal", "dfal_k_center"] = "k_center"
    """How active learning chooses; see `ActiveThiefSettings`."""
    augmentation: Literal["none", "shift", "affine", "crop_flip"] = "shift"
    """Augmentation of whatever a clone learns, in the control too."""
    learning: CloneTraining = CloneTraining(
        steps=2000, batch_size=32, optimizer="adam", learning_rate=2e-3, weight_decay=0.0, decay_at=(0.7,)
    )
    """How clones learn. In active learning rounds before the last take a fifth of the steps."""
    mixmatch: MixMatchSettings = MixMatchSettings(weight=10.0, ramp=0.25, average=0.99)
    """Of MixMatch; the published weight is of much longer trainings."""
    rotation: RotationSettings = RotationSettings()
    """Of the rotation loss."""

    @property
    def answers(self) -> Reveal:
        """What is revealed."""
        return Reveal(self.reveal)

    def __post_init__(self):
        super().__post_init__()
        if not self.queries or list(self.queries) != sorted(set(self.queries)) or self.rounds < 1:
            raise InputError(f"queries must be increasing, at least one, and rounds too, got {self.queries}")
        if any(count % self.rounds or count < 1 for count in self.queries):
            raise InputError(f"queries {self.queries} are no positive multiples of {self.rounds} rounds")
        for name in self.methods:
            if name not in METHODS:
                raise UnknownNameError("method", name, METHODS)
        if not 0 < self.victim_share < 1:
            raise InputError(f"victim_share must lie in (0, 1), got {self.victim_share}")
        augmentation(self.augmentation)


class Halves(NamedTuple):
    """The training set divided: what victims learn, and what is asked.

    Attributes:
      images, labels: the victims'. pool: (N, H, W, C), without labels.
    """

    images: Array
    labels: Array
    pool: Array


def _prepare(bench: Workbench) -> Halves:
    config: HighFidelitySettings = bench.config  # type: ignore[assignment]
    images, labels = bench.train
    order = jax.random.permutation(bench.key(config.seed, "halves"), len(images))
    count = round(config.victim_share * len(images))
    if len(images) - count < max(config.queries) or count < 1:
        raise InputError(f"{len(images) - count} images are left for a pool of {max(config.queries)} queries")
    mine, others = order[:count], order[count:]
    return Halves(images[mine], labels[mine], images[others])


def arms(config: HighFidelitySettings) -> list[Arm]:
    """The victim, another one of the same images, and per number of queries the control and the methods."""
    made = [
        Arm("teacher", f"Victim ({config.teacher})", "teacher"),
        Arm("independent", "Another victim, of the same images", "anchor"),
    ]
    for count in config.queries:
        control = f"{CONTROL}_{count}"
        for name in config.methods:
            place = {"attack": METHODS[name], "queries": count}
            label = f"{METHODS[name]}, {count:,} queries"
            made.append(Arm(f"{name}_{count}", label, "method", control=control, factors=place))
        place = {"attack": "Answers alone", "queries": count}
        made.append(Arm(control, f"Answers alone, {count:,}", "control", factors=place))
    return made


def measure(run: Run[HighFidelitySettings]) -> None:
    """One seed: its victim, and every clone."""
    config, halves = run.config, run.shared
    victim = _victim(run, halves, run.seed)
    budget = {"real_samples": len(halves.images), "training_steps": config.teacher_steps}
    _enter(run, "teacher", victim, None, budget)
    _enter(run, "independent", _victim(run, halves, run.seed + config.seeds), victim, budget)
    oracle = oracle_for(victim, config.answers, input_shape=victim.input_shape, box=victim.preprocessing.box)
    for count in config.queries:
        for name in (*config.methods, CONTROL):
            rounds = config.rounds if name.startswith("active") else 1
            settings = _settings(config, name, count, rounds)
            recipe = _recipe(name, rounds)
            here = AttackRun(config, settings, config.answers, run.network(config.student), run.bench, run.seed, halves)
            attack = recipe.attack(here)
            # all begin from the same parameters, and those without a choice ask the same images
            state, counts = paid(recipe, here, attack, oracle, count, f"{name}_{count}", f"{CONTROL}_{count}", chunk=1)
            spent = {**counts, "steps": rounds, "clone_updates": recipe.updates(settings)}
            _enter(run, f"{name}_{count}", recipe.read(here.clone, state), victim, spent)


def _victim(run: Run[HighFidelitySettings], halves: Halves, seed: int) -> Classifier:
    c, classifier = run.config, run.network(run.config.teacher)
    method = supervised_training(c, classifier, halves.images, halves.labels)
    budget = [c.teacher_steps, c.teacher_batch, c.teacher_learning_rate]
    how = [c.teacher, budget, c.teacher_augmentation, c.teacher_training, c.fit, c.victim_share, c.seed]
    return run.bench.cached("half_victim", seed, classifier, method, c.teacher_steps, how)


def _settings(config: HighFidelitySettings, name: str, count: int, rounds: int) -> PoolAttackSettings:
    if rounds == 1:
        return PoolAttackSettings(count, count, 0.0, config.learning)
    return ActiveThiefSettings(
        count,
        count // rounds,
        0.0,
        config.learning,
        selector=config.selector,
        round_steps=max(1, config.learning.steps // 5),
    )


def _recipe(name: str, rounds: int) -> AttackRecipe:
    return AttackRecipe(
        name,
        METHODS.get(name, name),
        rows=lambda settings: settings.budget,
        steps=lambda settings: settings.rounds,
        updates=lambda settings: settings.clone.steps + (rounds - 1) * getattr(settings, "round_steps", 0),
        attack=lambda run: _attack(name, run),
        control_label="Answers alone",
        pictures=lambda run, state, learnt: run.material.pool[:0],
    )


def _attack(name: str, run: AttackRun) -> Attack:
    config: HighFidelitySettings = run.config
    ways = {"mixmatch": lambda: mixmatch(config.mixmatch), "rotation": lambda: rotation(config.rotation)}
    way = ways.get(name.removeprefix("active_"))
    make: Any = active_thief if name.startswith("active") else random_attack
    options = {"augment": augmentation(config.augmentation), "learning": way and way()}
    return make(run.clone, run.material.pool, run.answers, run.settings, **options)


def _enter(
    run: Run[HighFidelitySettings], arm: str, network: Classifier, victim: Classifier | None, budget: dict[str, int]
) -> None:
    """The taxonomy's figures, and how often FGSM on the clone deceives the victim."""
    test = run.dataset.test
    labels = np.asarray(test.labels)
    with run.clock("evaluation"):
        if victim is None:
            right = 100 * float((network.predict(test.images).argmax(-1) == labels).mean())
            run.enter(arm, accuracy=round(right, 4), budget=budget)
            return
        noise = np.random.default_rng(run.seed).random((1000, *run.dataset.shape), np.float32)
        found = taxonomy(victim.predict, network.predict, test.images, noise, labels)
        images = as_float(jnp.asarray(test.images[:1000]))
        attacked = fgsm(network, images, jnp.asarray(labels[:1000]), run.config.transfer_epsilon)
        moved = transfer_rate(victim.predict(np.asarray(images)), victim.predict(np.asarray(attacked)), labels[:1000])
    metrics = {
        "total_variation": round(found["total_variation"], 6),
        "agreement_uniform": round(100 * found["fidelity_uniform"], 4),
        "largest_error": round(found["largest_error"], 4),
    }
    if moved["rate"] is not None:
        metrics["transfer"] = round(100 * moved["rate"], 4)
    figures = {"accuracy": round(100 * found["accuracy"], 4), "agreement": round(100 * found["fidelity"], 4)}
    run.enter(arm, metrics, **figures, budget=budget)
    if run.first:
        run.bench.keep_model(arm, network, run.seed)


_OTHER = "CIFAR-10 and a WRN-28-2"
_TABLE = f"{_PAPER}, as in the authors' talk"


def _published(
    dataset: str, method: str, queries: int, value: float, source: str, kind: Any, differs: str
) -> Published:
    place = {"attack": METHODS.get(method, "Answers alone"), "queries": queries}
    return Published(f"{method}_{queries}", dataset, value, source, kind, differs=differs, factors=place)


RECIPE = register(
    Recipe(
        name="high-fidelity",
        title="Extraction by learning from few answers and many images",
        summary="A clone learns from a few hundred answers and from a pool of images that nobody answered: MixMatch, the "
        "rotation loss, active learning, and active learning with MixMatch. The control learns from as many answers alone. "
        "Victims learn one half of the training images; the pool is the other half, without labels.",
        paper=_PAPER,
        config=HighFidelitySettings,
        arms=arms,
        measure=measure,
        prepare=_prepare,
        views=(QUERIES,),
        published=tuple(
            _published(dataset, method, 250, value, _TABLE, "slides", _OTHER)
            for dataset in ("mnist", "fashion_mnist")
            for method, value in ((CONTROL, 53.35), ("mixmatch", 87.98))
        ),
        time="3 min, 2 CPU cores (digits)",
        datasets=("digits", "mnist", "fashion_mnist"),
        presets={
            "digits": {
                **DIGITS,
                "queries": (50, 200),
                "learning": CloneTraining(
                    steps=600, batch_size=32, optimizer="adam", learning_rate=2e-3, weight_decay=0.0, decay_at=(0.7,)
                ),
            },
            "mnist": {"teacher_steps": 2000},
            "fashion_mnist": {"teacher_steps": 2000, "augmentation": "crop_flip"},
        },
    )
)

__all__ = ["CONTROL", "METHODS", "RECIPE", "Halves", "HighFidelitySettings", "arms", "measure"]
