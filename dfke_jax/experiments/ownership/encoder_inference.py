"""Dataset inference for self-supervised encoders: which stolen encoders it finds, and whom it accuses wrongly."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method, Static
from dfke_jax.core.population import population
from dfke_jax.core.types import Array, Augmentation
from dfke_jax.dataset_inference import DensitySettings, prepare_encoders
from dfke_jax.dataset_inference.case import compare
from dfke_jax.dataset_inference.density import representations
from dfke_jax.dataset_inference.encoders import EncoderCase, Likelihoods, judge_likelihoods, likelihoods
from dfke_jax.dataset_inference.judgement import decide
from dfke_jax.dataset_inference.statistics import MINIMUM_NULL, two_sided
from dfke_jax.distillation.representations import Match, representation_distillation
from dfke_jax.evaluation import linear_probe
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import LearningSettings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.ownership.findings import Finding, enter, finding, median_of
from dfke_jax.experiments.ownership.thieves import Parts, cut
from dfke_jax.experiments.ownership.views import P_VALUES, THREATS
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.contrastive import contrastive_training, feature_width
from dfke_jax.nn.many import member, separate_shares
from dfke_jax.nn.training import optimiser, trained
from dfke_jax.oracle import Ledger

VIEWS = ("noise", "affine")


def views(name: str, shape: tuple[int, int, int]) -> Augmentation:
    """How a view of an image is drawn.

    ``noise``: salt and pepper on up to 30 % of the pixels and Gaussian noise of a deviation up to 0.2, for images whose
    pixels have no neighbours. ``affine``: rotation up to 0.35 rad, scale 0.7 to 1.15, shifts up to an eighth of the width,
    and the same Gaussian noise.
    """
    if name == "noise":
        return data.compose(data.salt_and_pepper(0.3), data.gaussian_noise(0.2))
    if name == "affine":
        return data.compose(data.affine(0.35, (0.7, 1.15), shape[1] / 8), data.gaussian_noise(0.2))
    raise UnknownNameError("kind of views", name, VIEWS)


@dataclasses.dataclass(frozen=True)
class EncoderInferenceSettings(LearningSettings):
    """Settings of the table of encoders. The teacher is the victim's network; its budget is that of contrastive training."""

    private: int = 600
    """Images that the victim is trained on; a part of them fits densities, the rest is tested."""
    public: int = 300
    """Images known to no encoder, tested against them."""
    others: int = 2000
    """Images that thieves ask the victim about, or fine-tune it on; with their labels, the linear probe's."""
    views: Literal["noise", "affine"] = "affine"
    """How views are drawn in contrastive training."""
    contrast: float = 0.5
    """Temperature of the contrastive loss."""
    projection: int = 64
    """Width of the space of the contrastive loss."""
    fine_tuning_steps: int = 200
    """Steps of contrastive training by which the victim is fine-tuned."""
    fine_tuning_rate: float = 3e-4
    """Adam's constant learning rate of it."""
    thefts: tuple[str, ...] = ("retraining", "fine_tuning", "stealing_mse", "stealing_nt_xent")
    """Which thieves there are."""
    independents: int = 21
    """Independent encoders that a suspect is ranked among; more than 20, so that each can be left out in its turn."""
    inference: DensitySettings = DensitySettings()
    """How a suspect is tested."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("private", "public", "others", "projection", "fine_tuning_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.contrast > 0 and self.fine_tuning_rate > 0):
            raise InputError(
                f"contrast and fine_tuning_rate must be positive, got {self.contrast} and {self.fine_tuning_rate}"
            )
        if self.teacher_batch > min(self.private, self.others) or self.distillation_batch > self.others:
            raise InputError(
                f"batches are drawn without replacement: teacher_batch ({self.teacher_batch}) may not exceed private "
                f"({self.private}) or others ({self.others}), nor distillation_batch ({self.distillation_batch}) others"
            )
        if self.views not in VIEWS:
            raise UnknownNameError("kind of views", self.views, VIEWS)
        for name in self.thefts:
            if name not in THEFTS:
                raise UnknownNameError("theft of an encoder", name, THEFTS)
        least = max(MINIMUM_NULL + 1, int(np.floor(1 / self.inference.level)) + 1)
        if self.independents < least:
            raise InputError(
                f"independents must be at least {least} for alpha {self.inference.level}, got {self.independents}"
            )


# ---- encoders


class Scene(NamedTuple):
    """What a thief of an encoder works with: the run of a seed, the data and the victim."""

    run: Run[EncoderInferenceSettings]
    parts: Parts
    victim: Classifier

    def ask(self) -> tuple[Array, int]:
        """The victim's representations of the others' images, and how many rows that took."""
        images = self.parts.others[0]
        with Ledger(budget=len(images)) as ledger:
            with ledger.paying(len(images)):
                found = representations(self.victim, images)
            return jnp.asarray(found, jnp.float32), ledger.counts()["rows"] or 0


def _contrastive(
    config: EncoderInferenceSettings, network: Classifier, images: Array, fine_tune: bool = False
) -> Method:
    return contrastive_training(
        network,
        images,
        augment=views(config.views, network.input_shape),
        optimizer=optimiser("adam", config.fine_tuning_rate)
        if fine_tune
        else optimiser("adam", config.teacher_learning_rate, config.teacher_steps),
        batch_size=config.teacher_batch,
        temperature=config.contrast,
        projection=config.projection,
        fine_tune=fine_tune,
    )


def _one_of_many(static: Static, network: Classifier, images: Array) -> Method:
    return _contrastive(static.value, network, images)


def _trained(run: Run[EncoderInferenceSettings], name: str, images: np.ndarray) -> Classifier:
    config, network = run.config, run.network(run.config.teacher)
    method = _contrastive(config, network, jnp.asarray(images))
    kind = "victim" if name == "victim" else "theft"
    return trained(network, run.stage(kind, name, method, config.teacher_steps, rows=config.teacher_batch))


def _innocent(run: Run[EncoderInferenceSettings], images: np.ndarray) -> tuple[list[Classifier], bool]:
    """Independent encoders, trained as one program, and whether no two of them share an image."""
    config = run.config
    rows = separate_shares(len(images), config.independents, config.private, run.seed)
    network = run.network(config.teacher)
    factory = Partial(_one_of_many, Static(config), network)
    state = run.stage(
        "independents",
        "independents",
        population(factory, jnp.asarray(images[rows])),
        config.teacher_steps,
        rows=config.independents * config.teacher_batch,
        members=config.independents,
    )
    encoders = [member(network, state, index) for index in range(config.independents)]
    return encoders, config.independents * config.private <= len(images)


# ---- thieves


def _retraining(scene: Scene) -> tuple[Classifier, dict[str, int]]:
    images = scene.parts.private[0]
    model = _trained(scene.run, "retraining", images)
    return model, {"private_samples": len(images), "steps": scene.run.config.teacher_steps}


def _fine_tuning(scene: Scene) -> tuple[Classifier, dict[str, int]]:
    config, images = scene.run.config, scene.parts.others[0]
    method = _contrastive(config, scene.victim, jnp.asarray(images), fine_tune=True)
    steps = config.fine_tuning_steps
    state = scene.run.stage("theft", "fine_tuning", method, steps, rows=config.teacher_batch)
    return trained(scene.victim, state), {"other_samples": len(images), "steps": steps}


def _stealing(loss: Match, scene: Scene) -> tuple[Classifier, dict[str, int]]:
    run, config = scene.run, scene.run.config
    answers, asked = scene.ask()
    student = run.network(config.student)
    method = representation_distillation(
        student,
        jnp.asarray(scene.parts.others[0]),
        answers,
        loss=loss,
        temperature=config.contrast,
        steps=config.distillation_steps,
        batch_size=config.distillation_batch,
        learning_rate=config.distillation_learning_rate,
    )
    steps, rows = config.distillation_steps, config.distillation_batch
    state = run.stage("theft", f"stealing_{loss}", method, steps, rows=rows)
    return trained(student, state), {"victim_rows": asked, "steps": steps}


class Theft(NamedTuple):
    """One way to come by an encoder: its label in tables, and ``make(scene) -> (encoder, budget)``."""

    label: str
    make: Callable[[Scene], tuple[Classifier, dict[str, int]]]


THEFTS: dict[str, Theft] = {
    "retraining": Theft("Private images, trained anew", _retraining),
    "fine_tuning": Theft("Victim fine-tuned", _fine_tuning),
    "stealing_mse": Theft("Stolen by answers, MSE", functools.partial(_stealing, "mse")),
    "stealing_nt_xent": Theft("Stolen by answers, NT-Xent", functools.partial(_stealing, "nt_xent")),
}
"""By name."""


# ---- the table


def arms(config: EncoderInferenceSettings) -> list[Arm]:
    """The victim, independent encoders, an untrained one, and every thief."""
    steps = {"steps": config.teacher_steps}
    source = {"private_samples": config.private, **steps}
    control = {"independent_samples": config.private, **steps}
    return [
        Arm("source", f"Victim ({config.teacher}, SimCLR)", "teacher", budget=source),
        Arm("control", f"Independent encoders ({config.independents})", "control", budget=control),
        Arm("untrained", "Untrained encoder", "baseline", budget={"steps": 0}),
        *(Arm(name, THEFTS[name].label, "method") for name in config.thefts),
    ]


def prepare(bench: Workbench) -> None:
    """Refuses a thief whose representations are of another width."""
    config: EncoderInferenceSettings = bench.config  # type: ignore[assignment]
    widths = {name: feature_width(bench.network(name)) for name in (config.teacher, config.student)}
    if len(set(widths.values())) > 1:
        raise InputError(
            f"a stolen encoder must be as wide as the victim: features of teacher and student are {widths}"
        )


def measure(run: Run[EncoderInferenceSettings]) -> None:
    """Puts each of them to the test."""
    config, train = run.config, run.dataset.train
    parts, repeated = cut(train.images, train.labels, (config.private, config.public, config.others), run.seed)
    scene = Scene(run, parts, _trained(run, "victim", parts.private[0]))
    innocent, disjoint = _innocent(run, parts.innocent[0])
    with run.clock("inference"):
        case = prepare_encoders(parts.private[0], parts.public[0], victim=scene.victim, settings=config.inference)
        case = _controls(case, innocent, scene)
    if run.first:
        run.note(*_layout(config, case, parts, repeated, disjoint))
    victim = _try("source", case, scene.victim, scene)
    _try("untrained", case, _untrained(run), scene)
    if not victim.metrics["stolen"]:
        run.note(_powerless(victim, run.seed, config))
    for name in config.thefts:
        model, budget = THEFTS[name].make(scene)
        _try(name, case, model, scene, budget)


def _untrained(run: Run[EncoderInferenceSettings]) -> Classifier:
    network = run.network(run.config.teacher)
    return Classifier.create(network.module, run.key("untrained"), network.input_shape, network.preprocessing)


def _try(
    arm: str, case: EncoderCase, encoder: Classifier, scene: Scene, budget: dict[str, int] | None = None
) -> Finding:
    with scene.run.clock("inference"):
        found = _figures(case, likelihoods(case.images, encoder, case.settings))
    enter(scene.run, arm, found, accuracy=_probe(encoder, scene), budget=budget)
    return found


def _controls(case: EncoderCase, encoders: list[Classifier], scene: Scene) -> EncoderCase:
    """Tests every independent encoder against the others; returns the case with all of them as its null."""
    found = [likelihoods(case.images, encoder, case.settings) for encoder in encoders]
    null = tuple(compare(one.private, one.public) for one in found)
    figures = [_figures(case._replace(null=null[:i] + null[i + 1 :]), one) for i, one in enumerate(found)]
    shares = {name: float(np.mean([one.metrics[name] for one in figures])) for name in ("stolen", "stolen_either")}
    statistics = [one.metrics["statistic"] for one in figures]
    extremes = {"statistic_low": min(statistics), "statistic_high": max(statistics)}
    rates = {
        test: 100 * float(np.mean([one.p_values[test] < case.settings.level for one in figures]))
        for test in ("welch", "conformal", "welch_either", "conformal_either")
    }
    right = round(float(np.mean([_probe(encoder, scene) for encoder in encoders])), 4)
    found_by_median = median_of(figures, **shares, **extremes)
    enter(scene.run, "control", found_by_median, false_positives=rates, accuracy=right)
    return case._replace(null=null)


def _figures(case: EncoderCase, found: Likelihoods) -> Finding:
    """The verdict in the settings' direction, and what a difference in either direction says."""
    verdict, settings = judge_likelihoods(case, found), case.settings
    rules = settings.level, settings.permutations, settings.seed
    both = decide(found.private, found.public, case.null, *rules, either=True)
    recognised = two_sided(case.control) < settings.alpha
    metrics = {
        "effect_low": verdict.test.interval[0],
        "effect_high": verdict.test.interval[1],
        "standardised": verdict.test.standardised,
        "statistic": verdict.test.statistic,
        "stolen_either": 100.0 * (recognised and both.p_values["conformal"] < settings.level),
        "dimensions": verdict.dimensions,
        "converged": verdict.converged,
    }
    return finding(verdict, metrics, {f"{test}_either": p for test, p in both.p_values.items()})


def _probe(encoder: Classifier, scene: Scene) -> float:
    """Linear-probe accuracy in per cent: learnt from the others' images and labels, measured on the test set."""
    (images, labels), test = scene.parts.others, scene.run.dataset.test
    with scene.run.clock("evaluation"):
        right = linear_probe(
            representations(encoder, images), labels, representations(encoder, test.images), test.labels
        )
    return round(100 * right, 4)


def _layout(
    config: EncoderInferenceSettings, case: EncoderCase, parts: Parts, repeated: int, disjoint: bool
) -> list[str]:
    fitting, private, public = map(len, case.images)
    said = [
        f"Per seed: {fitting} private images fit the density of each encoder, {private} others are tested against {public} public "
        f"ones; {config.others} further images are the thieves' and, with labels, the linear probe's. "
        f"{config.independents} independent encoders, each trained on {config.private} of {len(parts.innocent[0])} images "
        "that are none of these, "
        + ("no two on the same one." if disjoint else "drawn anew for each: they share images with one another."),
        "Accuracy is that of a linear probe on the representations. “Stolen” needs a conformal p-value below alpha and a victim "
        "that the test recognises. Figures called “either” come from the same numbers with a difference in any direction "
        "counted: the published test counts private images that are likelier only.",
    ]
    if repeated:
        said.append(f"{repeated} training images are exact repetitions of others and were left out.")
    return said


def _powerless(victim: Finding, seed: int, config: EncoderInferenceSettings) -> str:
    p = victim.p_values
    return (
        f"Seed {seed}: the victim itself is not recognised (t = {victim.metrics['statistic']:.3g}, Welch p = "
        f"{p['welch']:.3g}, conformal p = {p['conformal']:.3g}; in either direction {p['welch_either']:.3g} and "
        f"{p['conformal_either']:.3g}). The published test has no power on {config.dataset} with this victim, so "
        "nothing follows from its other p-values."
    )


_DIGITS = {
    "teacher": "mlp_small",
    "student": "mlp_small",
    "private": 300,
    "public": 150,
    "others": 200,
    "teacher_steps": 500,
    "teacher_batch": 64,
    "teacher_learning_rate": 1e-3,
    "distillation_steps": 500,
    "distillation_learning_rate": 1e-3,
    "fine_tuning_steps": 50,
    "inference": DensitySettings(permutations=999),
}
_SYNTHETIC = {
    **_DIGITS,
    "private": 600,
    "public": 300,
    "others": 2000,
    "views": "noise",
    "fine_tuning_steps": 200,
    "inference": DensitySettings(),
}
_CLOTHES = {**_SYNTHETIC, "private": 1000, "public": 500, "views": "affine", "teacher_steps": 1000}

register(
    Recipe(
        name="encoder-inference",
        title="Dataset inference for self-supervised encoders",
        summary="Tests whether encoders were made from the victim's private images, by the density of their representations: "
        "the SimCLR-trained victim, copies of it, an encoder trained anew on its images, an untrained one, and independent ones "
        "on which false alarms are counted. Where the victim itself is not recognised the run says so.",
        paper="Dziedzic et al.: Dataset Inference for Self-Supervised Models, NeurIPS 2022",
        config=EncoderInferenceSettings,
        arms=arms,
        measure=measure,
        prepare=prepare,
        datasets=("digits", "synthetic", "mnist", "fashion_mnist"),
        presets={"digits": _DIGITS, "synthetic": _SYNTHETIC, "mnist": _CLOTHES, "fashion_mnist": _CLOTHES},
        views=(THREATS, P_VALUES),
    )
)

__all__ = ["THEFTS", "EncoderInferenceSettings", "arms", "measure", "views"]
