"""Watermarking schemes side by side: what each costs, what survives, and how often it accuses the innocent."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array
from dfke_jax.evaluation import accuracy
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DIGITS, StudentSettings, SupervisedSettings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.watermarks.marking import SCHEMES, Clean, Marked, SchemeRun, as_pixels
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.supervised import cross_entropy_training
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.watermarking import MarginSettings, RadioactiveSettings


@dataclasses.dataclass(frozen=True)
class WatermarkSchemeSettings(StudentSettings, SupervisedSettings):
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
    independents: int = 20
    """Clean networks, trained independently, that suspects are ranked among and false alarms are counted on. Each is judged
    against the others, so that a claim by rank at a level of 0.05 takes 20."""
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
    radioactive: RadioactiveSettings = RadioactiveSettings(radius=0.15, steps=8, learning_rate=0.04)
    """How images are moved."""
    radioactive_share: float = 0.2
    """Share of the training images that are moved."""
    fine_tune_steps: int = 300
    """Steps of plain fine-tuning of all layers on the clean training data."""
    fine_tune_learning_rate: float = 5e-4
    """Its learning rate at the beginning."""
    extraction_rows: int = 10_000
    """Training images that the thief asks; all of them where there are fewer."""
    extraction_steps: int = 1500
    """His training steps on the labels that he is answered. DAWN lives on the epochs that these are."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.schemes:
            if name not in SCHEMES:
                raise UnknownNameError("watermarking scheme", name, SCHEMES)
        if not self.schemes or len(set(self.schemes)) < len(self.schemes):
            raise InputError(f"schemes must be distinct and at least one, got {self.schemes}")
        for name in ("triggers", "frontier_steps", "fine_tune_steps", "extraction_rows", "extraction_steps", "bits"):
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


class _Answering:
    """Labels of an endpoint, with the one method that measuring needs."""

    def __init__(self, served: Callable[[np.ndarray], np.ndarray], num_classes: int):
        self.served, self.num_classes = served, num_classes

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.eye(self.num_classes, dtype=np.float32)[self.served(as_pixels(images))]


def arms(config: WatermarkSchemeSettings) -> list[Arm]:
    """Unmarked networks, and every scheme."""
    made = [
        Arm("teacher", f"Unmarked ({config.teacher})", "teacher"),
        Arm("independent", "Unmarked, trained independently", "anchor"),
        Arm("control", "Unmarked, same budget", "control"),
    ]
    if "frontier_stitching" in config.schemes:
        made.append(Arm("frontier_stitching_control", "Unmarked, trained on", "control"))
    return [*made, *(Arm(name, SCHEMES[name][0], "method") for name in config.schemes)]


def prepare(bench: Workbench) -> Clean:
    """The clean networks that suspects are ranked among, and the marker of radioactive data."""
    config: WatermarkSchemeSettings = bench.config  # type: ignore[assignment]
    classes = bench.dataset.num_classes
    if not {config.source, config.target} <= set(range(classes)) or config.source == config.target:
        raise InputError(f"source and target must be two of the {classes} classes")
    first = config.seed + config.seeds
    independents = [bench.teacher(seed) for seed in range(first, first + config.independents)]
    marker = bench.teacher(first + config.independents) if "radioactive" in config.schemes else None
    return Clean(independents, marker)


def measure(run: Run[WatermarkSchemeSettings]) -> None:
    """Marks a network by every scheme, fine-tunes and extracts it, and counts false alarms."""
    config, teacher, independents = run.config, run.teacher, run.shared.independents
    budget = run.bench.supervised_budget
    run.record("teacher", teacher, budget=budget)
    run.record("independent", independents[(run.seed - config.seed) % len(independents)], budget=budget)
    run.record("control", teacher, budget=budget)
    run.keep("control", *_first(run))
    if "frontier_stitching" in config.schemes:
        at = SchemeRun(run, "frontier_stitching_control")
        longer = {**budget, "fine_tuning_steps": config.frontier_steps}
        run.record(at.name, _fine_tuned(at, teacher, run.bench.train, config.frontier_steps), budget=longer)
    least = 1 / len(independents)
    run.note(
        f"Zhang's triggers: the p-value is the larger of the rank among {len(independents)} clean networks and the binomial one "
        f"against their pooled rate; it cannot fall below 1/{len(independents) + 1}, nor below 1/{len(independents)} for a clean "
        f"network"
        + (
            "."
            if least <= config.alpha
            else f", so that nothing can be claimed at {config.alpha:g}: take more of them."
        )
    )
    for name in config.schemes:
        _measure_scheme(SchemeRun(run, name))


def _first(run: Run[WatermarkSchemeSettings]) -> tuple[Array, Array]:
    images, labels = run.bench.train
    return jnp.asarray(as_pixels(images[:500])), labels[:500]


def _measure_scheme(at: SchemeRun) -> None:
    """One scheme: what it costs, what survives, and whom it accuses."""
    run, config, independents = at.run, at.config, at.independents
    marked = SCHEMES[at.name][1](at)
    if marked.pictures is not None:
        run.keep(at.name, *marked.pictures)
    pool = marked.pool or run.bench.train
    clone = _extracted(at, marked, pool[0])
    tune = lambda network: _fine_tuned(at, network, pool, config.fine_tune_steps)
    # behind DAWN the victim carries no mark: the clone is the first to have one
    suspects = {"": marked.network, "fine_tuned_": tune(marked.network)} if marked.served is None else {}
    suspects["extracted_"] = clone
    if marked.served is not None:
        suspects["extracted_fine_tuned_"] = tune(clone)
    metrics = {}
    for what, suspect in suspects.items():
        metrics |= _judged(at, marked, what, suspect)
    found = [marked.judge(one, [*independents[:i], *independents[i + 1 :]]) for i, one in enumerate(independents)]
    metrics["independent_success"] = float(np.mean([success for success, _ in found]))
    accused = [p < config.alpha for _, p in found]
    if marked.afresh is not None:
        accused = [marked.afresh(draw, i) < config.alpha for draw in range(_DRAWS) for i in range(len(independents))]
    metrics["false_alarm_rate"] = 100 * float(np.mean(accused))
    shown: Any = marked.network if marked.served is None else _Answering(marked.served, at.classes)
    budget = {**run.bench.supervised_budget, "extraction_steps": config.extraction_steps}
    asked = min(len(run.dataset.train), config.extraction_rows)
    run.record(at.name, shown, metrics, budget={**budget, "victim_rows": asked})


def _judged(at: SchemeRun, marked: Marked, what: str, suspect: Classifier) -> dict[str, float]:
    """Success and log₁₀ p of a suspect, and its accuracy where the arm does not show it."""
    found = {}
    config, test = at.config, at.run.dataset.test
    if what:
        found[f"{what}accuracy"] = 100 * accuracy(suspect.predict(test.images), test.labels)
    if at.name == "uchida" and what == "extracted_" and config.student != config.teacher:
        return found  # another network has no such layer to read
    success, p_value = marked.judge(suspect, at.independents)
    return {**found, f"{what}success": success, f"{what}log10_p": float(np.log10(max(p_value, 1e-300)))}


def _fine_tuned(at: SchemeRun, network: Classifier, pool: tuple[Array, Array], steps: int) -> Classifier:
    """All layers, trained on with clean data."""
    method = training(
        network,
        *pool,
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", at.config.fine_tune_learning_rate, steps),
        batch_size=at.config.teacher_batch,
        fine_tune=True,
    )
    return trained(network, at.run.stage("fine_tuning", f"{at.name}/fine_tuning", method, steps))


def _extracted(at: SchemeRun, marked: Marked, images: Array) -> Classifier:
    """A clone from the labels that the marked network, or its endpoint, answers for the first training images."""
    config, run = at.config, at.run
    images = images[: config.extraction_rows]
    if marked.served is None:
        answers = marked.network.predict(np.asarray(images)).argmax(1)
    else:
        answers = marked.served(as_pixels(images))
    clone = run.network(config.student)
    method = cross_entropy_training(
        clone,
        images,
        jnp.asarray(answers, jnp.int32),
        steps=config.extraction_steps,
        batch_size=config.teacher_batch,
        learning_rate=config.teacher_learning_rate,
    )
    return trained(clone, run.stage("extraction", f"{at.name}/extraction", method, config.extraction_steps))


_DRAWS = 25
_SMALL = {"teacher_steps": 1000, "margin": MarginSettings(weight=1.0)}  # 0.1 is for 200 epochs
register(
    Recipe(
        name="watermark-schemes",
        title="Watermarking schemes side by side",
        summary="Marks a network by each scheme and asks what it costs, whether the mark is found, whether it is still found "
        "after fine-tuning and in a clone made from answered labels, and how often independent networks are accused.",
        paper="Uchida et al. 2017; Zhang et al. 2018; Szyller et al. 2021 (DAWN); Le Merrer et al. 2020; Kim et al. 2023; "
        "Sablayrolles et al. 2020",
        config=WatermarkSchemeSettings,
        arms=arms,
        measure=measure,
        prepare=prepare,
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
                "margin": MarginSettings(weight=1.0),
                "unrelated": "",
                "schemes": tuple(name for name in SCHEMES if name != "zhang_unrelated"),
            },
            "mnist": _SMALL,
            "fashion_mnist": {**_SMALL, "source": 8, "target": 0, "unrelated": "mnist", "frontier_epsilon": 0.02},
        },
    )
)

__all__ = ["WatermarkSchemeSettings", "arms", "measure", "prepare"]
