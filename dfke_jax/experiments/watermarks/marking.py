"""One network marked by each scheme, and how to judge a suspect: what the recipe of watermarking schemes compares."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.types import Array
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import augmentation
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import Penalty, optimiser, trained, training
from dfke_jax.oracle import Reveal, from_function, oracle_for
from dfke_jax.synthesis.fitting import fitted
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


class Clean(NamedTuple):
    """Unmarked networks that all seeds share.

    Attributes:
      independents: trained independently of every seed's; suspects are ranked among them and false alarms counted on them.
      marker: whose features radioactive data are moved in; None where no scheme needs it.
    """

    independents: list[Classifier]
    marker: Classifier | None


class SchemeRun:
    """One scheme at one seed: its keys and stages.

    Attributes:
      run: of the seed, with `Clean` networks to share. name: of the scheme.
      config, bench: the run's. network: of the teacher, untrained. independents: see `Clean`.
    """

    def __init__(self, run: Run[Any], name: str):
        self.run, self.name = run, name
        self.config, self.bench = run.config, run.bench
        self.network = run.network(run.config.teacher)
        self.independents = run.shared.independents
        self.key = run.key(f"{name}/mark")
        self.images, self.labels = run.bench.train
        self.classes = run.dataset.num_classes

    def marking(self, method: Any, steps: int = 0) -> Classifier:
        """Runs a training of the teacher's network to its end."""
        steps = steps or self.config.teacher_steps
        return trained(self.network, self.run.stage("marking", f"{self.name}/marking", method, steps))

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


def _zhang(kind: str, run: SchemeRun) -> Marked:
    c = run.config
    of_class = {"source": c.source, "target": c.target, "num_classes": run.classes, "count": c.triggers}
    if kind == "content":
        triggers = content_triggers(run.key, run.images, run.labels, **of_class)
    elif kind == "noise":
        triggers = noise_triggers(run.key, run.images, run.labels, **of_class)
    else:
        other = data.load(c.unrelated, data_dir=run.bench.data_dir).train.images[:5000]
        other = jnp.asarray(fitted(other, run.bench.dataset.shape))
        triggers = unrelated_triggers(run.key, other, target=c.target, num_classes=run.classes, count=c.triggers)

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_triggers(suspect, triggers, independents)
        return 100 * found.rate, found.p_value

    return Marked(run.with_triggers(triggers), judge, pictures=triggers)


def _uchida(run: SchemeRun) -> Marked:
    c = run.config
    mark = uchida_mark(run.key, run.network, c.bits)
    network = run.marking(run.plain(run.images, run.labels, uchida_penalty(mark, c.bits_weight)))

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_uchida(suspect, mark)
        return 100 * found.rate, found.p_value

    def afresh(draw: int, place: int) -> float:
        other = uchida_mark(jax.random.fold_in(run.key, 1 + draw), run.network, c.bits)
        return verify_uchida(run.independents[place], other).p_value

    return Marked(network, judge, afresh=afresh)


def _dawn(run: SchemeRun) -> Marked:
    c = run.config
    victim = run.run.teacher
    inner = oracle_for(from_function(victim.predict, victim.input_shape, run.classes, gives="logits"), Reveal("label"))
    secret = np.asarray(jax.random.bits(run.key, (32,), jnp.uint8)).tobytes()  # repeatable; in earnest: dawn_key()
    served = DawnOracle(inner, secret, rate=c.dawn_rate)
    served(as_pixels(run.images[: c.extraction_rows]))  # the thief's queries
    marks = served.registry.marks()

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_dawn(suspect, marks, run.classes, dawn=served)
        return 100 * (1 - found.mismatch_rate), found.evidence.p_value

    pictures = TriggerSet(jnp.asarray(marks.images), jnp.asarray(marks.labels, jnp.int32))
    return Marked(victim, judge, served=served, pictures=pictures)


def _frontier(run: SchemeRun) -> Marked:
    c = run.config
    start = run.run.teacher
    some = slice(0, 5000)
    keys = frontier_keys(
        run.key,
        start,
        run.images[some],
        run.labels[some],
        count=c.triggers,
        epsilon=c.frontier_epsilon,
    )
    method = trigger_training(
        start,
        run.images,
        run.labels,
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

    return Marked(run.marking(method, c.frontier_steps), judge, pictures=keys.triggers)


def _margin(run: SchemeRun) -> Marked:
    c = run.config
    order = jax.random.permutation(jax.random.fold_in(run.key, 1), len(run.images))
    held, rest = order[: c.triggers], jnp.sort(order[c.triggers :])
    mark = margin_mark(run.key, run.images[held], run.labels[held], run.classes, c.triggers)
    images, labels = run.images[rest], run.labels[rest]
    method = margin_training(
        run.network,
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
        found = verify_margin(suspect, mark, run.classes)
        return 100 * found.successes / c.triggers, found.p_value

    pictures = TriggerSet(mark.images, mark.labels)
    return Marked(run.marking(method), judge, pool=(images, labels), pictures=pictures)


def _radioactive(run: SchemeRun) -> Marked:
    c, bench = run.config, run.bench
    mark = radioactive_mark(run.key, run.run.shared.marker)
    count = max(1, round(c.radioactive_share * len(run.images)))
    chosen = np.sort(np.asarray(jax.random.permutation(jax.random.fold_in(run.key, 1), len(run.images))[:count]))
    pixels = np.asarray(run.images)
    with bench.clock("marking"):
        moved = radioactive_images(mark, jnp.asarray(pixels[chosen]), run.labels[chosen], c.radioactive)
    images = pixels.copy() if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8)
    images[chosen] = moved
    test = bench.dataset.test.images

    def judge(suspect: Classifier, independents: Sequence[Classifier]) -> tuple[float, float]:
        found = verify_radioactive(suspect, mark, test)
        return 100 * float(found.cosines.mean()), found.p_value

    rows = functools.cache(lambda place: aligned_rows(mark.marker, run.independents[place], test))

    def afresh(draw: int, place: int) -> float:
        other = radioactive_mark(jax.random.fold_in(run.key, 2 + draw), mark.marker)
        return leaning(rows(place), other.directions).p_value

    network = run.marking(run.plain(jnp.asarray(images), run.labels))
    pictures = TriggerSet(jnp.asarray(moved[:500]) / 255, run.labels[chosen[:500]])
    return Marked(network, judge, pictures=pictures, afresh=afresh)


SCHEMES: dict[str, tuple[str, Callable[[SchemeRun], Marked]]] = {
    "zhang_content": ("Zhang, overlay", lambda run: _zhang("content", run)),
    "zhang_noise": ("Zhang, noise", lambda run: _zhang("noise", run)),
    "zhang_unrelated": ("Zhang, unrelated", lambda run: _zhang("unrelated", run)),
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


__all__ = ["SCHEMES", "Clean", "Judge", "Marked", "SchemeRun", "as_pixels"]
