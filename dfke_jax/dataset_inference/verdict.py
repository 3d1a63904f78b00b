"""From two sets of samples and a suspect to a verdict: stolen, or inconclusive."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Key
from dfke_jax.dataset_inference.blind_walk import BlindWalkSettings, blind_walk
from dfke_jax.dataset_inference.mingd import MinGDSettings, gradient_evaluations, mingd
from dfke_jax.dataset_inference.regressor import RegressorSettings, fit_regressor, saturation
from dfke_jax.dataset_inference.statistics import (
    MINIMUM_NULL,
    SampleCurve,
    WelchTest,
    calibrate,
    conformal_p_value,
    p_value_curve,
    permutation_test,
    welch_test,
)
from dfke_jax.nn.classifier import check_labels

EMBEDDINGS = ("blind_walk", "mingd")


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """How a verdict is reached.

    Attributes:
      embedding: ``blind_walk`` (labels only) or ``mingd`` (white-box).
      walk, descent: settings of the one and of the other.
      regressor: of the confidence regressor.
      alpha: p-values below it accuse.
      train: fraction of the samples that trains the regressor; these are not shown to the suspect.
      revealed: m, private and as many public samples that the suspect is asked about; all that `train` leaves by
        default.
      minimum: fewest samples of each kind to train on or to test with.
      both_correct: test only samples that the victim and the tested model classify correctly, against the confound
        of a suspect of low accuracy.
      accuracy_margin: a suspect whose accuracy on public samples is lower than the victim's by more is reported.
      permutations: of the permutation test.
      seed: of the split and the permutations. Fix it before looking: a choice among splits is a choice among p-values.
    """

    embedding: Literal["blind_walk", "mingd"] = "blind_walk"
    walk: BlindWalkSettings = BlindWalkSettings()
    descent: MinGDSettings = MinGDSettings()
    regressor: RegressorSettings = RegressorSettings()
    alpha: float = 0.05
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
        if self.minimum < 2:
            raise InputError(f"minimum must be at least 2, got {self.minimum}")
        if self.revealed is not None and self.revealed < self.minimum:
            raise InputError(f"revealed must be at least {self.minimum}, got {self.revealed}")
        if not self.accuracy_margin >= 0:
            raise InputError(f"accuracy_margin must not be negative, got {self.accuracy_margin}")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What can be said about a suspect.

    Attributes:
      stolen: whether the deciding p-value is below alpha and the test works on the victim itself. False means
        inconclusive, never innocent.
      p_value: the one that decides: ``conformal`` where there are independent models, else ``welch``.
      decided_by: which one that is.
      p_values: all of them by name: ``welch``, ``permutation``, and ``conformal`` if there are independent models.
      alpha: the level.
      false_alarm_rate: how often the deciding rule accuses an independent model: guaranteed for ``conformal``, nominal
        (alpha) for ``welch``.
      accused_independents: (how many, of how many) independent models have a Welch p-value below alpha; None without
        any. It shows what the Welch test is worth here.
      test: Welch test of the suspect: effect Δμ, its interval, degrees of freedom.
      control: Welch p-value of the victim itself on the same samples; where it is not small the test has no power here.
      curve: p-value against the number of revealed samples.
      samples_revealed: private samples, and as many public ones, that the suspect saw.
      tested: (private, public) samples that entered the test; fewer than revealed with `both_correct`.
      queries: label queries that the suspect was charged, a step-by-step attacker's count, accuracy included.
      rows_sent: rows that were sent to it in fact.
      gradients: gradients of the suspect that were taken (``mingd``).
      never: fraction of its walks, or of its descents, that ended at the cap.
      saturated: fraction of its scores at the edge of the regressor's range.
      accuracy: of ``victim`` and ``suspect`` on the tested ``private`` and ``public`` samples.
      assumptions: what has to be true for the p-value to mean what it says.
      notes: what was found that weakens the verdict.
    """

    stolen: bool
    p_value: float
    decided_by: str
    p_values: dict[str, float]
    alpha: float
    false_alarm_rate: float
    accused_independents: tuple[int, int] | None
    test: WelchTest
    control: float
    curve: SampleCurve
    samples_revealed: int
    tested: tuple[int, int]
    queries: int
    rows_sent: int
    gradients: int
    never: float
    saturated: float
    accuracy: dict[str, dict[str, float]]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        low, high = self.test.interval
        lines = [
            f"{'stolen' if self.stolen else 'inconclusive'}: p = {self.p_value:.3g} ({self.decided_by}), "
            f"false-alarm rate {self.false_alarm_rate:.3g}",
            f"effect {self.test.effect:.3f} [{low:.3f}, {high:.3f}], {self.samples_revealed} private and as many public "
            f"samples revealed, {self.queries} queries, {self.gradients} gradients",
            *(f"assumes: {text}" for text in self.assumptions),
            *(f"note: {text}" for text in self.notes),
        ]
        return "\n".join(lines)


class _Embedded(NamedTuple):
    """A model on one part of the private and public samples."""

    distances: tuple[np.ndarray, np.ndarray]
    correct: tuple[np.ndarray, np.ndarray]
    queries: int
    rows_sent: int
    gradients: int
    never: float


def overlap(private: Any, public: Any, box: tuple[float, float] = (0.0, 1.0)) -> list[tuple[int, int]]:
    """Pairs (i, j) of private and public images that are equal at 8 bits a pixel, by SHA-256.

    Args:
      private, public: (N, ...) floats in the box, or uint8.
      box: lowest and highest pixel value of floats.
    """
    where: dict[bytes, int] = {}
    for i, image in enumerate(np.asarray(private)):
        where.setdefault(_digest(image, box), i)
    return [(where[mark], j) for j, image in enumerate(np.asarray(public)) if (mark := _digest(image, box)) in where]


def _digest(image: np.ndarray, box: tuple[float, float]) -> bytes:
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip((image - box[0]) / (box[1] - box[0]), 0, 1)).astype(np.uint8)
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def dataset_inference(
    victim_private: tuple[Any, Any],
    victim_public: tuple[Any, Any],
    suspect: Callable,
    *,
    victim: Callable,
    key: Key,
    independents: Sequence[Callable] = (),
    references: Sequence[Callable] = (),
    settings: InferenceSettings | None = None,
    box: tuple[float, float] = (0.0, 1.0),
    host: bool = False,
) -> Verdict:
    """Tests whether a suspect was made from the victim's private samples.

    Half of the samples train a regressor on the victim's distances to its decision boundary; on the other half, disjoint by
    image, the suspect is embedded in the same way, and the scores of private and public samples are compared. With
    `references`, distances are calibrated by difficulty; with `independents`, the suspect's t statistic is ranked among
    theirs, which is the calibrated decision and should be preferred.

    Args:
      victim_private: (images (N, H, W, C), labels (N,)) that the victim was trained on.
      victim_public: (images, labels) of the same distribution that neither it nor an independent model has seen; as many.
      suspect: traceable, images -> logits; or with `host` any function of NumPy rows -> labels or logits.
      victim: the victim, traceable.
      key: of the walks.
      independents: at least 20 traceable models of the same task, trained on data disjoint from both sets of samples.
      references: other such models, for difficulty calibration; two or more are better than one.
      settings: see `InferenceSettings`.
      box: lowest and highest pixel value.
      host: the suspect answers on the host; then only walks are possible.

    Returns:
      A `Verdict`.

    Raises:
      InputError: private and public samples that overlap, sets of different sizes or shapes, too few samples, 1 to 19
        independent models or too few for alpha, or MinGD on a suspect without gradients.

    Source: Maini, Yaghini, Papernot, ICLR 2021; conformal p-values and difficulty calibration answer Szyller et al., TMLR
    2023, who found false positives for independent models.
    """
    settings = settings or InferenceSettings()
    private, public = _checked(victim_private, "private", box), _checked(victim_public, "public", box)
    _check(private, public, independents, settings, box, host)
    parts = _split(private, public, settings)
    keys = jax.random.split(key, 2)

    def embed(model: Callable, part: int, host: bool = False) -> _Embedded:
        return _embed(model, parts[part], keys[part], settings, box, host)

    victim_train, victim_test, found = embed(victim, 0), embed(victim, 1), embed(suspect, 1, host)
    reference = [[embed(model, part) for model in references] for part in (0, 1)]

    def calibrated(model: _Embedded, part: int) -> list[np.ndarray]:
        if not references:
            return list(model.distances)
        return [
            calibrate(model.distances[side], np.stack([other.distances[side] for other in reference[part]]))
            for side in (0, 1)
        ]

    regressor = fit_regressor(*calibrated(victim_train, 0), settings.regressor)

    def scores(model: _Embedded) -> tuple[np.ndarray, np.ndarray]:
        private, public = (regressor(part) for part in calibrated(model, 1))
        if settings.both_correct:
            private, public = (
                part[own & other]
                for part, own, other in zip((private, public), model.correct, victim_test.correct, strict=True)
            )
        return private, public

    tested = scores(found)
    if min(map(len, tested)) < settings.minimum:
        raise InputError(
            f"only {len(tested[0])} private and {len(tested[1])} public samples are classified correctly by both models; "
            f"the test needs {settings.minimum} of each"
        )
    test = _test(*tested)
    p_values = {
        "welch": test.p_value,
        "permutation": permutation_test(*tested, settings.permutations, settings.seed),
    }
    control = _test(*scores(victim_test)).p_value
    decided_by, rate, accused = "welch", settings.alpha, None
    if independents:
        null = [_test(*scores(embed(model, 1))) for model in independents]
        decided_by = "conformal"
        p_values["conformal"] = conformal_p_value(test.statistic, [result.statistic for result in null])
        ranks = len(null) + 1
        below = int(np.sum(np.arange(1, ranks + 1) / ranks < settings.alpha))
        rate = below / ranks
        accused = sum(result.p_value < settings.alpha for result in null), len(null)
    accuracy = {
        name: {side: float(np.mean(model.correct[i])) for i, side in enumerate(("private", "public"))}
        for name, model in (("victim", victim_test), ("suspect", found))
    }
    saturated = saturation(np.concatenate(tested))
    p_value = p_values[decided_by]
    return Verdict(
        stolen=bool(p_value < settings.alpha and control < settings.alpha),
        p_value=p_value,
        decided_by=decided_by,
        p_values=p_values,
        alpha=settings.alpha,
        false_alarm_rate=rate,
        accused_independents=accused,
        test=test,
        control=control,
        curve=p_value_curve(*tested, alpha=settings.alpha, seed=settings.seed),
        samples_revealed=len(parts[1][0][0]),
        tested=(len(tested[0]), len(tested[1])),
        queries=found.queries,
        rows_sent=found.rows_sent,
        gradients=found.gradients,
        never=found.never,
        saturated=saturated,
        accuracy=accuracy,
        assumptions=_assumptions(bool(independents), bool(references)),
        notes=_notes(settings, accuracy, found.never, saturated, control, accused, bool(references)),
    )


Pair = tuple[np.ndarray, np.ndarray]


def _checked(samples: tuple[Any, Any], what: str, box: tuple[float, float]) -> Pair:
    try:
        images, labels = samples
    except (TypeError, ValueError):
        raise InputError(f"{what} samples must be a pair (images, labels)") from None
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or not len(images):
        raise InputError(f"{what} images must be (N, ...) with at least one sample, got shape {images.shape}")
    if images.dtype == np.uint8:
        images = np.float32(box[0]) + np.float32(box[1] - box[0]) * images.astype(np.float32) / 255
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise InputError(f"{what} images contain NaN or infinity")
    if images.min() < box[0] - 1e-6 or images.max() > box[1] + 1e-6:
        raise InputError(
            f"{what} images must lie in [{box[0]}, {box[1]}], got {images.min():.4g} to {images.max():.4g}"
        )
    check_labels(labels, len(images), max(int(np.max(labels, initial=0)) + 1, 2), f"{what} labels", every_class=False)
    return images, labels


def _check(
    private: Pair,
    public: Pair,
    independents: Sequence,
    settings: InferenceSettings,
    box: tuple[float, float],
    host: bool,
) -> None:
    if private[0].shape[1:] != public[0].shape[1:]:
        raise InputError(f"private and public images differ in shape: {private[0].shape} and {public[0].shape}")
    if len(private[0]) != len(public[0]):
        raise InputError(
            f"{len(private[0])} private and {len(public[0])} public samples: give equally many, cutting the larger set"
        )
    common = overlap(private[0], public[0], box)
    if common:
        raise InputError(
            f"{len(common)} public images are private ones too (first: private {common[0][0]} = public {common[0][1]}); "
            "public samples must be unknown to the victim"
        )
    train = _train_count(len(private[0]), settings)
    test = len(private[0]) - train
    needed = settings.revealed or settings.minimum
    if train < settings.minimum or test < needed:
        raise InputError(
            f"{len(private[0])} samples of each kind leave {train} to train on and {test} to test with; at least "
            f"{settings.minimum} and {needed} are needed"
        )
    if 0 < len(independents) < MINIMUM_NULL or (independents and 1 / (len(independents) + 1) >= settings.alpha):
        needed = max(MINIMUM_NULL, int(np.floor(1 / settings.alpha)))
        raise InputError(
            f"{len(independents)} independent models cannot give a p-value below {settings.alpha}: at least {needed} "
            "are needed, or none"
        )
    if host and settings.embedding == "mingd":
        raise InputError("MinGD needs the suspect's gradients; a suspect on the host can only be walked (blind_walk)")


def _train_count(count: int, settings: InferenceSettings) -> int:
    return round(settings.train * count)


def _split(private: Pair, public: Pair, settings: InferenceSettings) -> tuple[tuple[Pair, Pair], tuple[Pair, Pair]]:
    """(train, test), each ((images, labels) private, (images, labels) public), disjoint."""
    rng = np.random.default_rng(settings.seed)
    train = _train_count(len(private[0]), settings)
    end = len(private[0]) if settings.revealed is None else train + settings.revealed
    chosen = [rng.permutation(len(private[0])) for _ in range(2)]
    parts = []
    for rows in (slice(0, train), slice(train, end)):
        (a, b) = (
            (side[0][order[rows]], side[1][order[rows]]) for side, order in zip((private, public), chosen, strict=True)
        )
        parts.append((a, b))
    return parts[0], parts[1]


def _embed(
    model: Callable,
    samples: tuple[Pair, Pair],
    key: Key,
    settings: InferenceSettings,
    box: tuple[float, float],
    host: bool,
) -> _Embedded:
    images = np.concatenate([samples[0][0], samples[1][0]])
    labels = np.concatenate([samples[0][1], samples[1][1]])
    half = len(samples[0][0])
    answers = _answers(model, images, host)
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
    if answers.ndim == 2:
        answers = answers.argmax(1)
    correct = answers == labels
    return _Embedded(
        (distances[:half], distances[half:]),
        (correct[:half], correct[half:]),
        queries,
        sent,
        gradients,
        float(1 - ended.mean()),
    )


def _answers(model: Callable, images: np.ndarray, host: bool, batch: int = 500) -> np.ndarray:
    if not host:
        answer = model if not jax.tree_util.all_leaves([model]) else Partial(model)
        model = lambda rows: _compiled(answer, rows)
    return np.concatenate([np.asarray(model(images[i : i + batch])) for i in range(0, len(images), batch)])


@jax.jit
def _compiled(model: Callable, rows: Any) -> Any:
    return model(rows)


def _test(private: np.ndarray, public: np.ndarray) -> WelchTest:
    """A Welch test; scores without variance are no evidence."""
    try:
        return welch_test(private, public)
    except InputError:
        effect = float(np.mean(public) - np.mean(private)) if min(len(private), len(public)) else 0.0
        return WelchTest(1.0, 0.0, 1.0, effect, (-np.inf, np.inf), 0.0, (len(private), len(public)))


def _assumptions(conformal: bool, calibrated: bool) -> tuple[str, ...]:
    found = [
        "private and public samples come from one distribution; only the private ones reached the victim's training",
        "the suspect's maker did not have the public samples, nor others that overlap with the private ones, by right",
        "the split and the seed were fixed before anybody looked at results",
        "the test is on samples that the regressor has not seen; every image counts once",
    ]
    if conformal:
        found.append(
            "the independent models are what an innocent suspect would be: same task and recipe, data disjoint from both sets"
        )
    else:
        found.append(
            "private and public samples are equally hard for an innocent model"
            + (", after calibration by the reference models" if calibrated else " (not calibrated)")
        )
    return tuple(found)


def _notes(
    settings: InferenceSettings,
    accuracy: dict[str, dict[str, float]],
    never: float,
    saturated: float,
    control: float,
    accused: tuple[int, int] | None,
    calibrated: bool,
) -> tuple[str, ...]:
    notes = []
    if control >= settings.alpha:
        notes.append(
            f"the victim itself is not recognised (p = {control:.3g}): the test has no power here, so nothing follows"
        )
    lower = accuracy["victim"]["public"] - accuracy["suspect"]["public"]
    if lower > settings.accuracy_margin:
        notes.append(
            f"the suspect's accuracy on public samples is {accuracy['suspect']['public']:.1%}, the victim's "
            f"{accuracy['victim']['public']:.1%}: distances of a weaker model are not comparable"
            + ("" if settings.both_correct else "; both_correct=True tests what both get right")
        )
    if never > 0.5:
        notes.append(
            f"{never:.0%} of the {'walks' if settings.embedding == 'blind_walk' else 'descents'} ended at the cap: "
            f"{'raise the noise' if settings.embedding == 'blind_walk' else 'raise max_steps'}"
        )
    if saturated > 0.5:
        notes.append(f"{saturated:.0%} of the scores are at the edge of the regressor's range: stop it earlier")
    if accused is None:
        notes.append(
            "no independent models: the false-alarm rate is nominal, and the literature measures more"
            + ("" if calibrated else "; references or at least 20 independent models calibrate it")
        )
    elif accused[0] > 2 * settings.alpha * accused[1] + 1:
        notes.append(
            f"the Welch test accuses {accused[0]} of {accused[1]} independent models: only the conformal p-value counts"
        )
    return tuple(notes)


__all__ = ["EMBEDDINGS", "InferenceSettings", "Verdict", "dataset_inference", "overlap"]
