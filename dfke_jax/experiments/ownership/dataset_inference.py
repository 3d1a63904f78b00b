"""Dataset inference: which thieves it finds, and whom it accuses wrongly."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.dataset_inference import RELEASED, Verdict, all_held_out_scores
from dfke_jax.dataset_inference.case import Case, Embedded, compare, scores
from dfke_jax.dataset_inference.regressor import Layout
from dfke_jax.dataset_inference.statistics import MINIMUM_NULL
from dfke_jax.dataset_inference.verdict import judge_embedded
from dfke_jax.evaluation import accuracy, agreement
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.supervision import independent_models
from dfke_jax.experiments.ownership import views
from dfke_jax.experiments.ownership.findings import enter, median_of
from dfke_jax.experiments.ownership.settings import PAPER, PRESETS, ThreatSettings
from dfke_jax.experiments.ownership.theft import case_of, distances_of, figures_of, new_theft
from dfke_jax.experiments.ownership.thieves import THREATS, Parts, Theft
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.many import member, separate_shares

_SMALL_GAP = 10.0
"""Points of accuracy on private above public samples below which a run warns of little power."""


@dataclasses.dataclass(frozen=True)
class DatasetInferenceSettings(ThreatSettings):
    """Settings of the table of threat models."""

    threats: tuple[str, ...] = tuple(THREATS)
    """Which thieves there are."""
    independents: int = 30
    """Independent models that a suspect is ranked among; more than 20, so that each can be left out in its turn."""
    references: int = 4
    """Further independent models, for difficulty calibration; 0 for none, as in the paper."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.threats:
            if name not in THREATS:
                raise UnknownNameError("threat model", name, THREATS)
        least = max(MINIMUM_NULL + 1, int(np.floor(1 / self.inference.level)) + 1)
        if self.independents < least:
            raise InputError(
                f"independents must be at least {least} for alpha {self.inference.level}, got {self.independents}"
            )
        if self.references < 0:
            raise InputError(f"references must not be negative, got {self.references}")


def arms(config: DatasetInferenceSettings) -> list[Arm]:
    """The victim, independent models, and every thief."""
    trained_on = {"steps": config.teacher_steps}
    source = {"private_samples": config.private, **trained_on}
    control = {"independent_samples": config.private, **trained_on}
    return [
        Arm("source", f"Victim ({config.teacher})", "teacher", budget=source),
        Arm("control", f"Independent models ({config.independents})", "control", budget=control),
        *(Arm(name, THREATS[name].label, "method") for name in config.threats),
    ]


def measure(run: Run[DatasetInferenceSettings]) -> None:
    """Puts each of them to the test."""
    config = run.config
    theft, repeated = new_theft(run)
    innocent, disjoint = _innocent(theft)
    if run.first:
        run.note(*_layout_notes(config, theft.parts, repeated, disjoint))
    case = case_of(theft, innocent[: config.references])
    victim = distances_of(theft, case, "source", theft.victim)
    case = _controls(case, victim, theft, innocent[config.references :])
    run.record("source", theft.victim)
    verdict = _try("source", case, victim, run)
    run.note(_gap(case, run.seed))
    if not verdict.stolen:
        run.note(
            f"Seed {run.seed}: the victim itself is not recognised (Welch p = {case.control:.3g}, conformal p = "
            f"{verdict.p_values['conformal']:.3g}). The test has no power on {config.dataset} with this victim, so "
            "nothing follows from any p-value of this seed."
        )
    for name in config.threats:
        suspect = THREATS[name].make(theft)
        run.record(name, suspect.model, beside=theft.victim, budget=suspect.budget)
        _try(name, case, distances_of(theft, case, name, suspect.model), run)


def _gap(case: Case, seed: int) -> str:
    private, public = (100 * case.victim_accuracy[side] for side in ("private", "public"))
    small = "; where it learnt so little by heart there is little to find" if private - public < _SMALL_GAP else ""
    return (
        f"Seed {seed}: the victim is right on {private:.1f} % of private and {public:.1f} % of public samples{small}."
    )


def _try(name: str, case: Case, found: Embedded, run: Run[DatasetInferenceSettings]) -> Verdict:
    verdict = judge_embedded(case, found)
    enter(run, name, figures_of(verdict))
    arm, notes = run.arms[name], verdict.notes
    if arm.role != "teacher":  # what weakens all verdicts is said once, with the victim's
        notes = [note for note in notes if note.startswith("the suspect's accuracy")]
    run.note(*(f"{arm.label}, seed {run.seed}: {note}." for note in notes))
    return verdict


def _innocent(theft: Theft) -> tuple[list[Classifier], bool]:
    """References and independent models, trained as one program, and whether no two of them share an image."""
    run, config, (images, labels) = theft.run, theft.config, theft.parts.innocent
    assert isinstance(config, DatasetInferenceSettings)
    members = config.references + config.independents
    rows = separate_shares(len(images), members, config.private, run.seed)
    network = run.network(config.teacher)
    method = independent_models(config, network, images, labels, rows)
    per_step = members * config.teacher_batch
    state = run.stage("independents", "independents", method, config.teacher_steps, rows=per_step, members=members)
    return [member(network, state, index) for index in range(members)], members * config.private <= len(images)


def _controls(case: Case, victim: Embedded, theft: Theft, models: Sequence[Classifier]) -> Case:
    """Tests every independent model against the others; returns the case with all of them as its null."""
    run, test = theft.run, theft.run.dataset.test
    found = [distances_of(theft, case, f"independent{i}", model) for i, model in enumerate(models)]
    null = tuple(compare(*scores(case, one)) for one in found)
    verdicts = [judge_embedded(case._replace(null=null[:i] + null[i + 1 :]), one) for i, one in enumerate(found)]
    alpha = case.settings.level
    accused = {
        "welch": [verdict.p_values["welch"] < alpha for verdict in verdicts],
        "conformal": [verdict.p_values["conformal"] < alpha for verdict in verdicts],
        "per_image": [p < alpha for p in _layout_p(victim, found, "per_image")],
        "released": [p < alpha for p in _layout_p(victim, found, "released")],
    }
    with run.clock("evaluation"):
        logits = [model.predict(test.images) for model in models]
        answers = theft.victim.predict(test.images)
    enter(
        run,
        "control",
        median_of(
            [figures_of(verdict) for verdict in verdicts],
            stolen=100 * float(np.mean([verdict.stolen for verdict in verdicts])),
        ),
        false_positives={test: 100 * float(np.mean(flags)) for test, flags in accused.items()},
        accuracy=round(100 * float(np.mean([accuracy(one, test.labels) for one in logits])), 4),
        agreement=round(100 * float(np.mean([agreement(one, answers) for one in logits])), 4),
    )
    counts = {name: f"{sum(flags)} of {len(flags)}" for name, flags in accused.items()}
    run.note(
        f"Seed {run.seed}: of the independent models, each held against the others, the Welch test accuses {counts['welch']} at "
        f"{alpha:g}, the conformal p-value {counts['conformal']} (its ranks allow no more). Scores of the released layout, "
        f"without calibration, accuse {counts['released']}; the same distances with one row an image, {counts['per_image']}."
    )
    return case._replace(null=null)


def _layout_p(victim: Embedded, models: Sequence[Embedded], layout: Layout) -> list[float]:
    """Welch p-values by the released analysis, on the samples that suspects see, half of them for training."""
    train = len(victim.distances[0]) // 2
    found = all_held_out_scores(victim.distances, [model.distances for model in models], train, RELEASED, layout=layout)
    return [compare(*pair).p_value for pair in found]


def _layout_notes(config: DatasetInferenceSettings, parts: Parts, repeated: int, disjoint: bool) -> list[str]:
    test = config.samples - round(config.inference.train * config.samples)
    test = min(test, config.inference.revealed or test)
    said = [
        f"Per seed: {config.private} private, {len(parts.public[0])} public and {config.others} other images, no image in two "
        f"of them; {test} private and {test} public ones are shown to a suspect, none of which trained the regressor. "
        f"{config.references} reference and {config.independents} independent models, each trained on {config.private} of "
        f"{len(parts.innocent[0])} further images, "
        + (
            "no two models on the same one."
            if disjoint
            else "drawn anew for each model: they share images with one another."
        ),
        "“Stolen” needs a conformal p-value below alpha and a victim that the test recognises. p-values of seeds are not "
        "averaged: tables show their median and how often the rule accused.",
    ]
    if repeated:
        said.append(f"{repeated} training images are exact repetitions of others and were left out.")
    return said


register(
    Recipe(
        name="dataset-inference",
        title="Dataset inference against threat models",
        summary="Tests whether suspects were made from the victim's private images: the victim, nine kinds of stolen model, "
        "three of them made to escape, and independent models trained on disjoint data, on which false alarms are counted. "
        "Where the victim itself is not recognised the method has no power, and the run says so.",
        paper=PAPER,
        config=DatasetInferenceSettings,
        arms=arms,
        measure=measure,
        datasets=("digits", "synthetic", "fashion_mnist", "mnist"),
        presets=PRESETS,
        views=(views.THREATS, views.P_VALUES),
    )
)

__all__ = ["DatasetInferenceSettings", "arms", "measure"]
