"""Watermarking schemes side by side: what each costs, what survives, and how often it accuses the innocent."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array
from dfke_jax.distillation.transfer_sets import fitted
from dfke_jax.evaluation import accuracy
from dfke_jax.experiments.anchors import DIGITS
from dfke_jax.experiments.registry import Recipe, register
from dfke_jax.experiments.result import Arm, Published
from dfke_jax.experiments.settings import Settings, augmentation
from dfke_jax.experiments.workbench import Workbench
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import Penalty, optimiser, trained, training
from dfke_jax.oracle import Reveal, from_function, oracle_for
from dfke_jax.synthesis.pool import Pool
from dfke_jax.watermarking import (
    DawnOracle,
    MarginSettings,
    RadioactiveSettings,
    TriggerSet,
    content_triggers,
    frontier_keys,
    margin_mark,
    margin_training,
    measured_rate,
    noise_triggers,
    radioactive_images,
    radioactive_mark,
    trigger_training,
    uchida_mark,
    uchida_penalty,
    unrelated_triggers,
    verify_dawn,
    verify_frontier,
    verify_margin,
    verify_radioactive,
    verify_triggers,
    verify_uchida,
)

Judge = Callable[[Classifier, Sequence[Classifier]], tuple[float, float]]
"""(suspect, independent networks) -> success of the mark in per cent, p-value."""


@dataclasses.dataclass(frozen=True)
class WatermarkSchemeSettings(Settings):
    """Settings of the comparison of watermarking schemes."""

    student: str = "lenet5"
    """Network of the thief's clone."""
    schemes: tuple[str, ...] = (
        "zhang_content",
        "zhang_noise",
        "zhang_unrelated",
        "uchida",
        "dawn",
        "frontier_stitching",
        "margin_based",
        "radioactive",
    )
    """Schemes to run."""
    independents: int = 8
    """Clean networks, trained independently, that false alarms are counted on."""
    alpha: float = 0.05
    """Level of a claim."""
    triggers: int = 100
    """Triggers, key inputs or watermark points of a scheme."""
    triggers_per_batch: int = 4
    """Triggers beside every clean batch."""
    source: int = 1
    """Class whose images become triggers with content or noise."""
    target: int = 7
    """Label that triggers are taught."""
    unrelated: str = "fashion_mnist"
    """Data set of unrelated triggers."""
    bits: int = 64
    """Bits of Uchida's mark."""
    bits_weight: float = 0.01
    """Weight of its regulariser."""
    dawn_rate: float = 0.005
    """Share of queries that DAWN answers wrongly."""
    frontier_epsilon: float = 0.1
    """FGSM step of key inputs, in pixel units."""
    frontier_steps: int = 300
    """Steps of stitching, and of its control."""
    margin: MarginSettings = MarginSettings()
    """How margins are widened."""
    radioactive: RadioactiveSettings = RadioactiveSettings(radius=0.15, steps=30, learning_rate=0.01)
    """How images are moved."""
    radioactive_share: float = 0.2
    """Share of the training images that are moved."""
    fine_tune_steps: int = 300
    """Steps of plain fine-tuning of all layers on the clean training data."""
    fine_tune_learning_rate: float = 5e-4
    """Its learning rate at the beginning."""
    extraction_steps: int = 1000
    """Training steps of the thief on the labels that he is answered for the training images."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.schemes:
            if name not in _SCHEMES:
                raise UnknownNameError("watermarking scheme", name, _SCHEMES)
        if not self.schemes or len(set(self.schemes)) < len(self.schemes):
            raise InputError(f"schemes must be distinct and at least one, got {self.schemes}")
        for name in ("triggers", "frontier_steps", "fine_tune_steps", "extraction_steps", "bits"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.independents < 2:
            raise InputError(
                f"independents must be at least 2: each is judged against the others, got {self.independents}"
            )
        if not 0 < self.radioactive_share <= 1 or not 0 < self.alpha < 1:
            raise InputError(
                f"radioactive_share must lie in (0, 1] and alpha in (0, 1), got {self.radioactive_share}, {self.alpha}"
            )
        if "zhang_unrelated" in self.schemes and not self.unrelated:
            raise InputError("zhang_unrelated needs a data set: give unrelated, or leave the scheme out")


@dataclasses.dataclass
class _Marked:
    """What a scheme hands over.

    Attributes:
      network: marked. judge: see `Judge`.
      served: what answers the thief, where it is not the network itself: images -> labels.
      pool: (images, labels) that the thief asks and fine-tuning uses, where they are not all training data.
      pictures: what the mark looks like.
    """

    network: Classifier
    judge: Judge
    served: Callable[[np.ndarray], np.ndarray] | None = None
    pool: tuple[Array, Array] | None = None
    pictures: TriggerSet | None = None


class _Work:
    """One scheme at one seed: its keys and stages."""

    def __init__(self, config: WatermarkSchemeSettings, bench: Workbench, name: str, seed: int):
        self.config, self.bench, self.name, self.seed = config, bench, name, seed
        self.key = bench.key(seed, f"{name}/mark")
        self.images, self.labels = bench.train
        self.classes = bench.dataset.num_classes

    def marking(self, method: Any, steps: int | None = None) -> Classifier:
        """Runs a training of the teacher's network to its end."""
        steps, c = steps or self.config.teacher_steps, self.config
        network = self.bench.network(c.teacher)
        return trained(network, self.bench.stage("marking", f"{self.name}/marking", self.seed, method, steps))

    def plain(self, images: Array, labels: Array, penalty: Penalty | None = None) -> Any:
        """The control's training on other images, or with a penalty."""
        c = self.config
        return training(
            self.bench.network(c.teacher),
            images,
            labels,
            loss=Partial(cross_entropy),
            optimizer=optimiser("adam", c.teacher_learning_rate, c.teacher_steps),
            batch_size=c.teacher_batch,
            augment=augmentation(c.teacher_augmentation),
            penalty=penalty,
        )

    def with_triggers(self, triggers: TriggerSet) -> Classifier:
        c = self.config
        return self.marking(
            trigger_training(
                self.bench.network(c.teacher),
                self.images,
                self.labels,
                triggers,
                steps=c.teacher_steps,
                batch_size=c.teacher_batch,
                triggers_per_batch=min(c.triggers_per_batch, len(triggers.labels)),
                learning_rate=c.teacher_learning_rate,
                augment=augmentation(c.teacher_augmentation),
            )
        )


def _zhang(kind: str, work: _Work) -> _Marked:
    c = work.config
    of_class = {"source": c.source, "target": c.target, "num_classes": work.classes, "count": c.triggers}
    if kind == "content":
        triggers = content_triggers(work.key, work.images, work.labels, **of_class)
    elif kind == "noise":
        triggers = noise_triggers(work.key, work.images, work.labels, **of_class)
    else:
        other = data.load(c.unrelated, data_dir=work.bench.data_dir).train.images[:5000]
        other = jnp.asarray(fitted(other, work.bench.dataset.shape))
        triggers = unrelated_triggers(work.key, other, target=c.target, num_classes=work.classes, count=c.triggers)

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        null = [verify_triggers(one, triggers, 0.5).successes for one in independents]
        found = verify_triggers(suspect, triggers, measured_rate(null, c.triggers))
        return 100 * found.rate, found.p_value

    return _Marked(work.with_triggers(triggers), judge, pictures=triggers)


def _uchida(work: _Work) -> _Marked:
    c = work.config
    mark = uchida_mark(work.key, work.bench.network(c.teacher), c.bits)
    network = work.marking(work.plain(work.images, work.labels, uchida_penalty(mark, c.bits_weight)))

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_uchida(suspect, mark)
        return 100 * found.rate, found.p_value

    return _Marked(network, judge)


def _dawn(work: _Work) -> _Marked:
    c = work.config
    victim = work.bench.teacher(work.seed)
    inner = oracle_for(from_function(victim.predict, victim.input_shape, work.classes, gives="logits"), Reveal("label"))
    secret = np.asarray(jax.random.bits(work.key, (32,), jnp.uint8)).tobytes()  # repeatable; in earnest: dawn_key()
    served = DawnOracle(inner, secret, rate=c.dawn_rate)
    served(_pixels(work.images))
    marks = served.registry.marks()

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_dawn(suspect, marks, work.classes)
        return 100 * (1 - found.mismatch_rate), found.evidence.p_value

    pictures = TriggerSet(jnp.asarray(marks.images), jnp.asarray(marks.labels, jnp.int32))
    return _Marked(victim, judge, served=served, pictures=pictures)


def _frontier(work: _Work) -> _Marked:
    c = work.config
    start = work.bench.teacher(work.seed)
    some = slice(0, 5000)
    keys = frontier_keys(
        work.key, start, work.images[some], work.labels[some], count=c.triggers, epsilon=c.frontier_epsilon
    )
    method = trigger_training(
        start,
        work.images,
        work.labels,
        keys.triggers,
        steps=c.frontier_steps,
        batch_size=c.teacher_batch,
        triggers_per_batch=min(4 * c.triggers_per_batch, c.triggers),
        learning_rate=c.fine_tune_learning_rate,
        fine_tune=True,
    )

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_frontier(suspect, keys, alpha=c.alpha)
        return 100 * (1 - found.mismatches / found.size), found.p_value

    return _Marked(work.marking(method, c.frontier_steps), judge, pictures=keys.triggers)


def _margin(work: _Work) -> _Marked:
    c = work.config
    order = jax.random.permutation(jax.random.fold_in(work.key, 1), len(work.images))
    held, rest = order[: c.triggers], jnp.sort(order[c.triggers :])
    mark = margin_mark(work.key, work.images[held], work.labels[held], work.classes, c.triggers)
    images, labels = work.images[rest], work.labels[rest]
    method = margin_training(
        work.bench.network(c.teacher),
        images,
        labels,
        mark,
        c.margin,
        steps=c.teacher_steps,
        batch_size=c.teacher_batch,
        learning_rate=c.teacher_learning_rate,
        augment=augmentation(c.teacher_augmentation),
    )

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_margin(suspect, mark, work.classes)
        return 100 * found.successes / c.triggers, found.p_value

    pictures = TriggerSet(mark.images, mark.labels)
    return _Marked(work.marking(method), judge, pool=(images, labels), pictures=pictures)


def _radioactive(work: _Work) -> _Marked:
    c, bench = work.config, work.bench
    mark = radioactive_mark(work.key, bench.teacher(work.seed + c.seeds + c.independents))
    count = max(1, round(c.radioactive_share * len(work.images)))
    chosen = np.sort(np.asarray(jax.random.permutation(jax.random.fold_in(work.key, 1), len(work.images))[:count]))
    pixels = np.asarray(work.images)
    with bench.clock("marking"):
        moved = radioactive_images(mark, jnp.asarray(pixels[chosen]), work.labels[chosen], c.radioactive)
    images = pixels.copy() if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8)
    images[chosen] = moved
    test = bench.dataset.test.images

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_radioactive(suspect, mark, test)
        return 100 * float(found.cosines.mean()), found.p_value

    network = work.marking(work.plain(jnp.asarray(images), work.labels))
    pictures = TriggerSet(jnp.asarray(moved[:500]) / 255, work.labels[chosen[:500]])
    return _Marked(network, judge, pictures=pictures)


_SCHEMES: dict[str, tuple[str, Callable[[_Work], _Marked]]] = {
    "zhang_content": ("Zhang, overlay", lambda work: _zhang("content", work)),
    "zhang_noise": ("Zhang, noise", lambda work: _zhang("noise", work)),
    "zhang_unrelated": ("Zhang, unrelated", lambda work: _zhang("unrelated", work)),
    "uchida": ("Uchida, bits in the weights", _uchida),
    "dawn": ("DAWN, keyed answers", _dawn),
    "frontier_stitching": ("Frontier stitching", _frontier),
    "margin_based": ("Margin-based", _margin),
    "radioactive": ("Radioactive data", _radioactive),
}


class _Answering:
    """Labels of an endpoint, with the one method that measuring needs."""

    def __init__(self, served: Callable[[np.ndarray], np.ndarray], num_classes: int):
        self.served, self.num_classes = served, num_classes

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.eye(self.num_classes, dtype=np.float32)[self.served(_pixels(images))]


def _pixels(images: Any) -> np.ndarray:
    images = np.asarray(images)
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def execute(config: WatermarkSchemeSettings, bench: Workbench) -> list[Arm]:
    """Unmarked networks, and every scheme: marked, fine-tuned, extracted, and its false alarms."""
    if not {config.source, config.target} <= set(range(bench.dataset.num_classes)) or config.source == config.target:
        raise InputError(f"source and target must be two of the {bench.dataset.num_classes} classes")
    arms = bench.anchors(real=False)
    arms[0].label = f"Unmarked ({config.teacher})"
    independents = [bench.teacher(config.seed + config.seeds + i) for i in range(config.independents)]
    other = Arm("independent", "Unmarked, trained independently", "anchor", budget=arms[0].budget)
    control = Arm("control", "Unmarked, same budget", "control", budget=arms[0].budget)
    stitched = Arm(
        "frontier_stitching_control",
        "Unmarked, trained on",
        "control",
        budget={**arms[0].budget, "fine_tuning_steps": config.frontier_steps},
    )
    for index, seed in enumerate(bench.seeds):
        teacher = bench.teacher(seed)
        bench.record(other, independents[index % len(independents)], teacher)
        bench.record(control, teacher, teacher)
        bench.keep("control", Pool(*_first(bench), jnp.int32(500), ()), seed)
        if "frontier_stitching" in config.schemes:
            work = _Work(config, bench, "frontier_stitching_control", seed)
            more = _fine_tuned(work, teacher, bench.train, "plain", config.frontier_steps)
            bench.record(stitched, more, teacher)
    arms += [other, control, *([stitched] if stitched.accuracy else [])]
    for name in config.schemes:
        arms.append(_arm(config, bench, name, independents))
    return arms


def _first(bench: Workbench) -> tuple[Array, Array]:
    images, labels = bench.train
    return jnp.asarray(_pixels(images[:500])), labels[:500]


def _arm(config: WatermarkSchemeSettings, bench: Workbench, name: str, independents: Sequence[Classifier]) -> Arm:
    label, make = _SCHEMES[name]
    count = len(bench.dataset.train)
    arm = Arm(name, label, "method", budget={"real_samples": count, "training_steps": config.teacher_steps})
    arm.budget |= {"victim_rows": count, "extraction_steps": config.extraction_steps}
    for seed in bench.seeds:
        work = _Work(config, bench, name, seed)
        marked = make(work)
        if marked.pictures is not None:
            bench.keep(name, Pool(*marked.pictures, jnp.int32(len(marked.pictures.labels)), ()), seed)
        pool = marked.pool or bench.train
        clone = _extracted(work, marked, pool[0])
        tune = lambda network, work=work, pool=pool: _fine_tuned(
            work, network, pool, "fine_tuning", config.fine_tune_steps
        )
        # behind DAWN the victim carries no mark: the clone is the first to have one
        suspects = {"": marked.network, "fine_tuned_": tune(marked.network)} if marked.served is None else {}
        suspects["extracted_"] = clone
        if marked.served is not None:
            suspects["extracted_fine_tuned_"] = tune(clone)
        metrics = {}
        for what, suspect in suspects.items():
            metrics |= _judged(work, marked, what, suspect, independents)
        found = [marked.judge(one, [*independents[:i], *independents[i + 1 :]]) for i, one in enumerate(independents)]
        metrics["independent_success"] = float(np.mean([success for success, _ in found]))
        metrics["false_alarm_rate"] = 100 * float(np.mean([p < config.alpha for _, p in found]))
        shown: Any = marked.network if marked.served is None else _Answering(marked.served, work.classes)
        bench.record(arm, shown, bench.teacher(seed), **metrics)
    return arm


def _judged(
    work: _Work, marked: _Marked, what: str, suspect: Classifier, independents: Sequence[Classifier]
) -> dict[str, float]:
    """Success and log₁₀ p of a suspect, and its accuracy where the arm does not show it."""
    found = {}
    config, test = work.config, work.bench.dataset.test
    if what:
        found[f"{what}accuracy"] = 100 * accuracy(suspect.predict(test.images), test.labels)
    if work.name == "uchida" and what == "extracted_" and config.student != config.teacher:
        return found  # another network has no such layer to read
    success, p_value = marked.judge(suspect, independents)
    return {**found, f"{what}success": success, f"{what}log10_p": float(np.log10(max(p_value, 1e-300)))}


def _fine_tuned(work: _Work, network: Classifier, pool: tuple[Array, Array], what: str, steps: int) -> Classifier:
    """All layers, trained on with clean data."""
    method = training(
        network,
        *pool,
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", work.config.fine_tune_learning_rate, steps),
        batch_size=work.config.teacher_batch,
        fine_tune=True,
    )
    return trained(network, work.bench.stage("fine_tuning", f"{work.name}/{what}", work.seed, method, steps))


def _extracted(work: _Work, marked: _Marked, images: Array) -> Classifier:
    """A clone from the labels that the marked network, or its endpoint, answers for the training images."""
    config, bench = work.config, work.bench
    if marked.served is None:
        answers = marked.network.predict(np.asarray(images)).argmax(1)
    else:
        answers = marked.served(_pixels(images))
    clone = bench.network(config.student)
    method = training(
        clone,
        images,
        jnp.asarray(answers, jnp.int32),
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", config.teacher_learning_rate, config.extraction_steps),
        batch_size=config.teacher_batch,
    )
    state = bench.stage("extraction", f"{work.name}/extraction", work.seed, method, config.extraction_steps)
    return trained(clone, state)


_SMALL = {"teacher_steps": 1000}
register(
    Recipe(
        name="watermark-schemes",
        title="Watermarking schemes side by side",
        summary="Marks a network by each scheme and asks what it costs, whether the mark is found, whether it is still found "
        "after fine-tuning and in a clone made from answered labels, and how often independent networks are accused.",
        paper="Uchida et al. 2017; Zhang et al. 2018; Szyller et al. 2021 (DAWN); Le Merrer et al. 2020; Kim et al. 2023; "
        "Sablayrolles et al. 2020",
        config=WatermarkSchemeSettings,
        execute=execute,
        published=(
            Published("zhang_content", "mnist", 100.0, "Zhang et al., AsiaCCS 2018: about 100% of triggers", "recalled", "success of the mark, not accuracy"),
        ),
        presets={
            "digits": {
                **DIGITS,
                "teacher": "mlp_small",
                "student": "mlp_small",
                "teacher_steps": 400,
                "extraction_steps": 400,
                "fine_tune_steps": 100,
                "frontier_steps": 200,
                "triggers": 40,
                "unrelated": "",
                "schemes": tuple(name for name in _SCHEMES if name != "zhang_unrelated"),
            },
            "mnist": _SMALL,
            "fashion_mnist": {**_SMALL, "source": 8, "target": 0, "unrelated": "mnist", "frontier_epsilon": 0.02},
        },
    )
)  # fmt: skip

__all__ = ["WatermarkSchemeSettings", "execute"]
