"""From two sets of samples and a suspect to a verdict: stolen, or inconclusive."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import answers_on_host
from dfke_jax.core.types import Key
from dfke_jax.dataset_inference.case import (
    Case,
    Embedded,
    InferenceSettings,
    accuracies,
    embed,
    prepare,
    scores,
)
from dfke_jax.dataset_inference.judgement import Judgement, decide, looked_at
from dfke_jax.dataset_inference.regressor import saturation
from dfke_jax.dataset_inference.statistics import p_value_curve
from dfke_jax.oracle.frameworks import as_host_victim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Judgement):
    """What can be said about a suspected classifier.

    Attributes:
      control: of the victim on the same samples; curve: against the number of revealed samples.
      samples_revealed: private samples, and as many public ones, that the suspect saw; fewer are
        `tested` with `both_correct`.
      queries: label queries that an attacker who asks step by step would have spent, accuracy
        included.
      rows_sent: rows that were sent to it in fact, which is what an endpoint charges (one that
        knows repeated rows again, less).
      gradients: gradients of the suspect that were taken (``mingd``).
      never: fraction of its walks, or of its descents, that ended at the cap.
      saturated: fraction of its scores at the edge of the regressor's range.
      accuracy: of ``victim`` and ``suspect`` on the tested ``private`` and ``public`` samples.

    All others are those of `Judgement`.
    """

    samples_revealed: int
    rows_sent: int
    gradients: int
    never: float
    saturated: float
    accuracy: dict[str, dict[str, float]]

    @property
    def effort(self) -> str:
        """Samples revealed, rows and gradients."""
        return (
            f", {self.samples_revealed} private and as many public samples revealed, "
            f"{self.rows_sent} rows sent ({self.queries} step by step), {self.gradients} gradients"
        )


def judge(case: Case, suspect: Callable, *, host: bool | None = None) -> Verdict:
    """The verdict on one suspect.

    Args:
      case: from `prepare`.
      suspect: traceable, images -> logits; a victim, oracle or endpoint on the host, a PyTorch
        module or a fitted scikit-learn estimator; or with `host` any function of NumPy rows ->
        labels or logits.
      host: whether the suspect answers on the host (then only walks are possible); it is known of
        all but functions.

    Raises:
      InputError: MinGD on a suspect without gradients, or too few samples that both models classify
        correctly.
    """
    settings = case.settings
    suspect = as_host_victim(suspect, case.samples[0][0].shape[1:], None) or suspect
    host = answers_on_host(suspect, host)
    if host and settings.embedding == "mingd":
        raise InputError(
            "MinGD needs the suspect's gradients; a suspect on the host can only be walked "
            "(blind_walk)"
        )
    return judge_embedded(case, embed(suspect, case.samples, case.key, settings, case.box, host))


def judge_embedded(case: Case, found: Embedded) -> Verdict:
    """`judge` for a suspect whose distances to the case's samples are known already (`case.embed`).

    Raises:
      InputError: too few samples that both models classify correctly.
    """
    settings = case.settings
    private, public = scores(case, found)
    if min(len(private), len(public)) < settings.minimum:
        raise InputError(
            f"only {len(private)} private and {len(public)} public samples are classified "
            f"correctly by both models; the test needs {settings.minimum} of each"
        )
    test, p_values, decided_by, rate, accused = decide(
        private, public, case.null, settings.level, settings.permutations, settings.seed
    )
    accuracy = {"victim": case.victim_accuracy, "suspect": accuracies(found)}
    saturated = saturation(np.concatenate([private, public]))
    p_value, calibrated = p_values[decided_by], bool(case.references)
    return Verdict(
        stolen=bool(p_value < settings.level and case.control < settings.alpha),
        p_value=p_value,
        decided_by=decided_by,
        p_values=p_values,
        alpha=settings.alpha,
        looks=settings.looks,
        false_alarm_rate=rate,
        accused_independents=accused,
        test=test,
        control=case.control,
        curve=p_value_curve(private, public, alpha=settings.level, seed=settings.seed),
        samples_revealed=len(case.samples[0][0]),
        tested=(len(private), len(public)),
        queries=found.queries,
        rows_sent=found.rows_sent,
        gradients=found.gradients,
        never=found.never,
        saturated=saturated,
        accuracy=accuracy,
        assumptions=_assumptions(bool(case.null), calibrated, settings.looks),
        notes=_notes(settings, accuracy, found.never, saturated, case.control, accused, calibrated),
    )


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
    host: bool | None = None,
) -> Verdict:
    """Tests whether a suspect was made from the victim's private samples.

    Half of the samples train a regressor on the victim's distances to its decision boundary; on the
    other half, disjoint by image, the suspect is embedded in the same way, and the scores of
    private and public samples are compared. With `references`, distances are calibrated by
    difficulty; with `independents`, the suspect's t statistic is ranked among theirs, which is the
    calibrated decision and should be preferred. For several suspects, `prepare` once and `judge`
    each.

    Args:
      victim_private: (images (N, H, W, C), labels (N,)) that the victim was trained on.
      victim_public: (images, labels) of the same distribution that neither it nor an independent
        model has seen; as many.
      suspect: traceable, images -> logits; or with `host` any function of NumPy rows -> labels or
        logits.
      victim: the victim, traceable.
      key: of the walks.
      independents: at least 20 traceable models of the same task, trained on data disjoint from
        both sets of samples.
      references: other such models, for difficulty calibration; two or more are better than one.
      settings: see `InferenceSettings`.
      box: lowest and highest pixel value.
      host: the suspect answers on the host; then only walks are possible.

    Returns:
      A `Verdict`.

    Raises:
      InputError: private and public samples that overlap, sets of different sizes or shapes, too
        few samples, 1 to 19 independent models or too few for alpha, or MinGD on a suspect without
        gradients.

    Source: Maini, Yaghini, Papernot, ICLR 2021; conformal p-values and difficulty calibration
    answer Szyller et al., TMLR 2023, who found false positives for independent models.
    """
    # before any work
    if answers_on_host(suspect, host) and settings is not None and settings.embedding == "mingd":
        raise InputError(
            "MinGD needs the suspect's gradients; a suspect on the host can only be walked "
            "(blind_walk)"
        )
    case = prepare(
        victim_private,
        victim_public,
        victim=victim,
        key=key,
        independents=independents,
        references=references,
        settings=settings,
        box=box,
    )
    return judge(case, suspect, host=host)


def _assumptions(conformal: bool, calibrated: bool, looks: int) -> tuple[str, ...]:
    found = [
        "private and public samples come from one distribution; only the private ones reached the "
        "victim's training",
        "the suspect's maker did not have the public samples, nor others that overlap with the "
        "private ones, by right",
        "the split and the seed were fixed before anybody looked at results",
        looked_at(looks),
        "the test is on samples that the regressor has not seen; every image counts once",
    ]
    if conformal:
        found.append(
            "the independent models are what an innocent suspect would be: same task and recipe, "
            "data disjoint from both sets"
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
            f"the victim itself is not recognised (p = {control:.3g}): the test has no power here, "
            "so nothing follows"
        )
    lower = accuracy["victim"]["public"] - accuracy["suspect"]["public"]
    if lower > settings.accuracy_margin:
        notes.append(
            f"the suspect's accuracy on public samples is {accuracy['suspect']['public']:.1%}, the "
            f"victim's {accuracy['victim']['public']:.1%}: distances of a weaker model are not "
            "comparable"
            + ("" if settings.both_correct else "; both_correct=True tests what both get right")
        )
    if never > 0.5:
        notes.append(
            f"{never:.0%} of the {'walks' if settings.embedding == 'blind_walk' else 'descents'} "
            "ended at the cap: "
            f"{'raise the noise' if settings.embedding == 'blind_walk' else 'raise max_steps'}"
        )
    if saturated > 0.5:
        notes.append(
            f"{saturated:.0%} of the scores are at the edge of the regressor's range: stop it "
            "earlier"
        )
    if accused is None:
        notes.append(
            "no independent models: the false-alarm rate is nominal, and the literature measures "
            "more"
            + ("" if calibrated else "; references or at least 20 independent models calibrate it")
        )
    elif accused[0] > 2 * settings.level * accused[1] + 1:
        notes.append(
            f"the Welch test accuses {accused[0]} of {accused[1]} independent models: only the "
            "conformal p-value counts"
        )
    return tuple(notes)


__all__ = ["Verdict", "dataset_inference", "judge", "judge_embedded"]
