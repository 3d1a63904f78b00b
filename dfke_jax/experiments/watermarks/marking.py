"""One network marked by each scheme, and how to judge a suspect: what the recipe of watermarking schemes compares."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.types import Array
from dfke_jax.distillation.transfer_sets import fitted
from dfke_jax.experiments.bench.settings import augmentation
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import Penalty, optimiser, trained, training
from dfke_jax.oracle import Reveal, from_function, oracle_for
from dfke_jax.watermarking import (
    DawnOracle,
    TriggerSet,
    aligned_rows,
    content_triggers,
    frontier_keys,
    leaning,
    margin_mark,
    margin_training,
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


@dataclasses.dataclass
class Marked:
    """What a scheme hands over.

    Attributes:
      network: marked. judge: see `Judge`.
      served: what answers the thief, where it is not the network itself: images -> labels.
      pool: (images, labels) that the thief asks and fine-tuning uses, where they are not all training data.
      pictures: what the mark looks like.
      afresh: (draw, which independent network) -> p-value under another secret, of schemes whose secret is drawn before anything is
        marked: networks of one task stand alike to one secret, so their false alarms are counted over many.
    """

    network: Classifier
    judge: Judge
    served: Callable[[np.ndarray], np.ndarray] | None = None
    pool: tuple[Array, Array] | None = None
    pictures: TriggerSet | None = None
    afresh: Callable[[int, int], float] | None = None


class Work:
    """One scheme at one seed: its keys and stages.

    Attributes:
      config: the recipe's settings. name: of the scheme. network: of the teacher, untrained.
      teachers: unmarked networks by seed. independents: those that false alarms are counted on.
    """

    def __init__(
        self, config: Any, bench: Workbench, name: str, seed: int, network: Classifier, teachers: dict[int, Classifier]
    ):
        self.config, self.bench, self.name, self.seed = config, bench, name, seed
        self.network, self.teachers = network, teachers
        first = config.seed + config.seeds
        self.independents = [teachers[first + i] for i in range(config.independents)]
        self.key = bench.key(seed, f"{name}/mark")
        self.images, self.labels = bench.train
        self.classes = bench.dataset.num_classes

    def marking(self, method: Any, steps: int = 0) -> Classifier:
        """Runs a training of the teacher's network to its end."""
        steps = steps or self.config.teacher_steps
        return trained(self.network, self.bench.stage("marking", f"{self.name}/marking", self.seed, method, steps))

    def plain(self, images: Array, labels: Array, penalty: Penalty | None = None) -> Any:
        """The control's training on other images, or with a penalty."""
        c = self.config
        return training(
            self.network,
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
                self.network,
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


def _zhang(kind: str, work: Work) -> Marked:
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
        found = verify_triggers(suspect, triggers, independents)
        return 100 * found.rate, found.p_value

    return Marked(work.with_triggers(triggers), judge, pictures=triggers)


def _uchida(work: Work) -> Marked:
    c = work.config
    mark = uchida_mark(work.key, work.network, c.bits)
    network = work.marking(work.plain(work.images, work.labels, uchida_penalty(mark, c.bits_weight)))

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_uchida(suspect, mark)
        return 100 * found.rate, found.p_value

    def afresh(draw: int, place: int) -> float:
        other = uchida_mark(jax.random.fold_in(work.key, 1 + draw), work.network, c.bits)
        return verify_uchida(work.independents[place], other).p_value

    return Marked(network, judge, afresh=afresh)


def _dawn(work: Work) -> Marked:
    c = work.config
    victim = work.teachers[work.seed]
    inner = oracle_for(from_function(victim.predict, victim.input_shape, work.classes, gives="logits"), Reveal("label"))
    secret = np.asarray(jax.random.bits(work.key, (32,), jnp.uint8)).tobytes()  # repeatable; in earnest: dawn_key()
    served = DawnOracle(inner, secret, rate=c.dawn_rate)
    served(as_pixels(work.images[: c.extraction_rows]))  # the thief's queries
    marks = served.registry.marks()

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_dawn(suspect, marks, work.classes, dawn=served)
        return 100 * (1 - found.mismatch_rate), found.evidence.p_value

    pictures = TriggerSet(jnp.asarray(marks.images), jnp.asarray(marks.labels, jnp.int32))
    return Marked(victim, judge, served=served, pictures=pictures)


def _frontier(work: Work) -> Marked:
    c = work.config
    start = work.teachers[work.seed]
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

    return Marked(work.marking(method, c.frontier_steps), judge, pictures=keys.triggers)


def _margin(work: Work) -> Marked:
    c = work.config
    order = jax.random.permutation(jax.random.fold_in(work.key, 1), len(work.images))
    held, rest = order[: c.triggers], jnp.sort(order[c.triggers :])
    mark = margin_mark(work.key, work.images[held], work.labels[held], work.classes, c.triggers)
    images, labels = work.images[rest], work.labels[rest]
    method = margin_training(
        work.network,
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
    return Marked(work.marking(method), judge, pool=(images, labels), pictures=pictures)


def _radioactive(work: Work) -> Marked:
    c, bench = work.config, work.bench
    mark = radioactive_mark(work.key, work.teachers[c.seed + c.seeds + c.independents])
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

    rows = functools.cache(lambda place: aligned_rows(mark.marker, work.independents[place], test))

    def afresh(draw: int, place: int) -> float:
        other = radioactive_mark(jax.random.fold_in(work.key, 2 + draw), mark.marker)
        return leaning(rows(place), other.directions).p_value

    network = work.marking(work.plain(jnp.asarray(images), work.labels))
    pictures = TriggerSet(jnp.asarray(moved[:500]) / 255, work.labels[chosen[:500]])
    return Marked(network, judge, pictures=pictures, afresh=afresh)


SCHEMES: dict[str, tuple[str, Callable[[Work], Marked]]] = {
    "zhang_content": ("Zhang, overlay", lambda work: _zhang("content", work)),
    "zhang_noise": ("Zhang, noise", lambda work: _zhang("noise", work)),
    "zhang_unrelated": ("Zhang, unrelated", lambda work: _zhang("unrelated", work)),
    "uchida": ("Uchida, bits in the weights", _uchida),
    "dawn": ("DAWN, keyed answers", _dawn),
    "frontier_stitching": ("Frontier stitching", _frontier),
    "margin_based": ("Margin-based", _margin),
    "radioactive": ("Radioactive data", _radioactive),
}


def as_pixels(images: Any) -> np.ndarray:
    """float32 in [0, 1] on the host."""
    images = np.asarray(images)
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


__all__ = ["SCHEMES", "Judge", "Marked", "Work", "as_pixels"]
