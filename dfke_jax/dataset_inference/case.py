"""What does not depend on the suspect: the split, the victim's regressor, references and
independent models.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Key
from dfke_jax.dataset_inference.blind_walk import BlindWalkSettings, blind_walk
from dfke_jax.dataset_inference.mingd import MinGDSettings, gradient_evaluations, mingd
from dfke_jax.dataset_inference.regressor import (
    ConfidenceRegressor,
    RegressorSettings,
    fit_regressor,
)
from dfke_jax.dataset_inference.samples import Pair, checked_samples, overlap
from dfke_jax.dataset_inference.statistics import MINIMUM_NULL, WelchTest, calibrate, welch_test

EMBEDDINGS = ("blind_walk", "mingd")


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """How a verdict is reached.

    Attributes:
      embedding: ``blind_walk`` (labels only) or ``mingd`` (white-box).
      walk, descent: settings of the one and of the other.
      regressor: of the confidence regressor.
      alpha: p-values below it accuse.
      looks: verdicts that will be looked at in all, fixed beforehand: suspects, splits, numbers of
        revealed samples, and every look at a test that goes on. Each accuses below `level` = alpha
        / looks (Bonferroni), and all together accuse anybody wrongly with probability alpha at
        most.
      train: fraction of the samples that trains the regressor; these are not shown to the suspect.
      revealed: m, private and as many public samples that the suspect is asked about; all that
        `train` leaves by default.
      minimum: fewest samples of each kind to train on or to test with.
      both_correct: test only samples that the victim and the tested model classify correctly,
        against the confound of a suspect of low accuracy.
      accuracy_margin: a suspect whose accuracy on public samples is lower than the victim's by more
        is reported.
      permutations: of the permutation test.
      seed: of the split and the permutations. Fix it before looking: a choice among splits is a
        choice among p-values.
    """

    embedding: Literal["blind_walk", "mingd"] = "blind_walk"
    walk: BlindWalkSettings = BlindWalkSettings()
    descent: MinGDSettings = MinGDSettings()
    regressor: RegressorSettings = RegressorSettings()
    alpha: float = 0.05
    looks: int = 1
    train: float = 0.5
    revealed: int | None = None
    minimum: int = 10
    both_correct: bool = False
    accuracy_margin: float = 0.05
    permutations: int = 9999
    seed: int = 0

    def __post_init__(self):
        if self.embedding not in EMBEDDINGS:
            raise UnknownNameError("embedding", self.embedding, EMBEDDINGS)
        for name in ("alpha", "train"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        check_looks(self.looks)
        if self.minimum < 2:
            raise InputError(f"minimum must be at least 2, got {self.minimum}")
        if self.revealed is not None and self.revealed < self.minimum:
            raise InputError(f"revealed must be at least {self.minimum}, got {self.revealed}")
        if not self.accuracy_margin >= 0:
            raise InputError(f"accuracy_margin must not be negative, got {self.accuracy_margin}")

    @property
    def level(self) -> float:
        """alpha / looks."""
        return self.alpha / self.looks


def check_looks(looks: int) -> None:
    """Raises `InputError` for a number of looks that is none."""
    if looks < 1 or int(looks) != looks:
        raise InputError(f"looks must be a whole number, at least 1, got {looks}")


class Embedded(NamedTuple):
    """A model on one part of the private and public samples; pairs are (private, public).

    Attributes:
      distances: (m, T, P) each.
      correct: (m,) each, which samples it classifies correctly.
      queries: label queries that an attacker who asks step by step would have spent.
      rows_sent: rows that were sent in fact, which is what an endpoint charges; counted where the
        model answers on the host.
      gradients: that were taken.
      never: fraction of walks or descents that ended at the cap.
    """

    distances: tuple[np.ndarray, np.ndarray]
    correct: tuple[np.ndarray, np.ndarray]
    queries: int
    rows_sent: int
    gradients: int
    never: float


class Case(NamedTuple):
    """All that does not depend on the suspect, so that several can be judged against it (`judge`).

    Attributes:
      settings, box: as given.
      samples: what a suspect is shown: private and public (images, labels).
      key: of its walks.
      regressor: trained on the victim's distances to other samples.
      references: per side, (M, m, T, P) distances of the reference models to the samples, or empty.
      victim_correct: per side, which of them the victim classifies correctly.
      victim_accuracy: by side, of all samples.
      control: Welch p-value of the victim itself.
      null: Welch tests of the independent models.
    """

    settings: InferenceSettings
    box: tuple[float, float]
    samples: tuple[Pair, Pair]
    key: Key
    regressor: ConfidenceRegressor
    references: tuple[np.ndarray, ...]
    victim_correct: tuple[np.ndarray, np.ndarray]
    victim_accuracy: dict[str, float]
    control: float
    null: tuple[WelchTest, ...]


def prepare(
    victim_private: tuple[Any, Any],
    victim_public: tuple[Any, Any],
    *,
    victim: Callable,
    key: Key,
    independents: Sequence[Callable] = (),
    references: Sequence[Callable] = (),
    settings: InferenceSettings | None = None,
    box: tuple[float, float] = (0.0, 1.0),
) -> Case:
    """Splits the samples, embeds victim, references and independent models, and trains the
    regressor.

    Arguments and errors are those of `dataset_inference`.
    """
    settings = settings or InferenceSettings()
    private, public = check_case(victim_private, victim_public, len(independents), settings, box)
    parts = _split(private, public, settings)
    keys = jax.random.split(key, 2)
    train, test = (
        embed(victim, part, key, settings, box) for part, key in zip(parts, keys, strict=True)
    )
    reference = []
    for part, part_key in zip(parts, keys, strict=True):
        found = [embed(model, part, part_key, settings, box).distances for model in references]
        reference.append(tuple(np.stack(side) for side in zip(*found, strict=True)))
    regressor = fit_regressor(*_calibrated(train.distances, reference[0]), settings.regressor)
    accuracy = accuracies(test)
    case = Case(
        settings, box, parts[1], keys[1], regressor, reference[1], test.correct, accuracy, 1.0, ()
    )
    control = compare(*scores(case, test)).p_value
    null = tuple(
        compare(*scores(case, embed(model, parts[1], keys[1], settings, box)))
        for model in independents
    )
    return case._replace(control=control, null=null)


def _calibrated(
    distances: tuple[np.ndarray, np.ndarray], references: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    if not references:
        return distances
    private, public = (
        calibrate(own, others) for own, others in zip(distances, references, strict=True)
    )
    return private, public


def scores(case: Case, model: Embedded) -> tuple[np.ndarray, np.ndarray]:
    """Private and public scores of a model, of those samples that enter the test."""
    private, public = (
        case.regressor(part) for part in _calibrated(model.distances, case.references)
    )
    if not case.settings.both_correct:
        return private, public
    kept = [own & other for own, other in zip(model.correct, case.victim_correct, strict=True)]
    return private[kept[0]], public[kept[1]]


def accuracies(model: Embedded) -> dict[str, float]:
    """By side."""
    return {
        side: float(np.mean(correct))
        for side, correct in zip(("private", "public"), model.correct, strict=True)
    }


def check_case(
    victim_private: tuple[Any, Any],
    victim_public: tuple[Any, Any],
    independents: int,
    settings: InferenceSettings,
    box: tuple[float, float] = (0.0, 1.0),
) -> tuple[Pair, Pair]:
    """What `prepare` asks of samples, settings and the number of independent models, before any
    model is trained or asked.

    Returns:
      Private and public samples, as `checked_samples`.

    Raises:
      InputError: as `dataset_inference`.
    """
    private, public = (
        checked_samples(victim_private, "private", box),
        checked_samples(victim_public, "public", box),
    )
    if private[0].shape[1:] != public[0].shape[1:]:
        raise InputError(
            f"private and public images differ in shape: {private[0].shape} and {public[0].shape}"
        )
    if len(private[0]) != len(public[0]):
        raise InputError(
            f"{len(private[0])} private and {len(public[0])} public samples: give equally many, "
            "cutting the larger set"
        )
    common = overlap(private[0], public[0], box)
    if common:
        raise InputError(
            f"{len(common)} public images are private ones too (first: private {common[0][0]} = "
            f"public {common[0][1]}); public samples must be unknown to the victim"
        )
    train = _train_count(len(private[0]), settings)
    test = len(private[0]) - train
    needed = settings.revealed or settings.minimum
    if train < settings.minimum or test < needed:
        raise InputError(
            f"{len(private[0])} samples of each kind leave {train} to train on and {test} to test "
            f"with; at least {settings.minimum} and {needed} are needed"
        )
    check_null(independents, settings.level)
    return private, public


def check_null(count: int, alpha: float) -> None:
    """Raises `InputError` for independent models too few to give a conformal p-value below alpha;
    none is fine.
    """
    if 0 < count < MINIMUM_NULL or (count and 1 / (count + 1) >= alpha):
        needed = max(MINIMUM_NULL, int(np.floor(1 / alpha)))
        raise InputError(
            f"{count} independent models cannot give a p-value below {alpha}: at least {needed} "
            "are needed, or none"
        )


def _train_count(count: int, settings: InferenceSettings) -> int:
    return round(settings.train * count)


def _split(
    private: Pair, public: Pair, settings: InferenceSettings
) -> tuple[tuple[Pair, Pair], tuple[Pair, Pair]]:
    """(train, test), each ((images, labels) private, (images, labels) public), disjoint."""
    rng = np.random.default_rng(settings.seed)
    train = _train_count(len(private[0]), settings)
    end = len(private[0]) if settings.revealed is None else train + settings.revealed
    chosen = [rng.permutation(len(private[0])) for _ in range(2)]
    sides = tuple(zip((private, public), chosen, strict=True))

    def part(rows: slice) -> tuple[Pair, Pair]:
        (a, first), (b, second) = sides
        return (a[0][first[rows]], a[1][first[rows]]), (b[0][second[rows]], b[1][second[rows]])

    return part(slice(0, train)), part(slice(train, end))


def embed(
    model: Callable,
    samples: tuple[Pair, Pair],
    key: Key,
    settings: InferenceSettings,
    box: tuple[float, float],
    host: bool = False,
) -> Embedded:
    """Distances of private and public samples under a model, by the embedding of the settings."""
    images = np.concatenate([samples[0][0], samples[1][0]])
    labels = np.concatenate([samples[0][1], samples[1][1]])
    half = len(samples[0][0])
    sent_to_host = _Counted(model) if host else None
    model = sent_to_host or model
    answers = answered(model, images, host)
    if settings.embedding == "mingd":
        margins = mingd(model, images, settings.descent, box=box)
        distances, ended = np.asarray(margins.distances), np.asarray(margins.reached)
        queries, sent, gradients = len(images), len(images), gradient_evaluations(margins)
    else:
        walks = blind_walk(key, model, images, labels, settings.walk, box=box, host=host)
        distances, ended = np.asarray(walks.distances), np.asarray(walks.flipped)
        # one more query a sample for the accuracy
        queries, gradients = walks.queries + len(images), 0
        sent = walks.rows_sent(settings.walk) + len(images)
    if sent_to_host is not None:
        sent = sent_to_host.rows
    if answers.ndim == 2:
        answers = answers.argmax(1)
    correct = answers == labels
    return Embedded(
        (distances[:half], distances[half:]),
        (correct[:half], correct[half:]),
        queries,
        sent,
        gradients,
        float(1 - ended.mean()),
    )


class _Counted:
    """A model on the host and the rows that it was sent."""

    def __init__(self, model: Callable):
        self.model, self.rows = model, 0

    def __call__(self, rows: np.ndarray) -> Any:
        self.rows += len(rows)
        return self.model(rows)


def answered(model: Callable, images: np.ndarray, host: bool, batch: int = 500) -> np.ndarray:
    """(N, ...) answers of a traceable model, or with `host` of any function of NumPy rows, batch by
    batch.
    """
    if not host:
        answer = model if not jax.tree_util.all_leaves([model]) else Partial(model)
        model = lambda rows: _compiled(answer, rows)
    return np.concatenate(
        [np.asarray(model(images[i : i + batch])) for i in range(0, len(images), batch)]
    )


@jax.jit
def _compiled(model: Callable, rows: Any) -> Any:
    return model(rows)


def compare(private: np.ndarray, public: np.ndarray) -> WelchTest:
    """A Welch test; scores without variance are no evidence."""
    try:
        return welch_test(private, public)
    except InputError:
        effect = (
            float(np.mean(public) - np.mean(private)) if min(len(private), len(public)) else 0.0
        )
        return WelchTest(1.0, 0.0, 1.0, effect, (-np.inf, np.inf), 0.0, (len(private), len(public)))


__all__ = [
    "EMBEDDINGS",
    "Case",
    "Embedded",
    "InferenceSettings",
    "accuracies",
    "answered",
    "check_case",
    "check_looks",
    "check_null",
    "compare",
    "embed",
    "prepare",
    "scores",
]
