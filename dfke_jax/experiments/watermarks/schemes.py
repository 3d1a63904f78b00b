"""Watermarking schemes side by side: what each costs, what survives, and how often it accuses the innocent."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array
from dfke_jax.evaluation import accuracy
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.settings import DIGITS, StudentSettings, SupervisedSettings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.watermarks.marking import SCHEMES, Marked, SchemeRun, as_pixels
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.synthesis.pool import Pool
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


def execute(config: WatermarkSchemeSettings, bench: Workbench) -> list[Arm]:
    """Unmarked networks, and every scheme: marked, fine-tuned, extracted, and its false alarms."""
    if not {config.source, config.target} <= set(range(bench.dataset.num_classes)) or config.source == config.target:
        raise InputError(f"source and target must be two of the {bench.dataset.num_classes} classes")
    seeds = [*bench.seeds, *range(bench.seeds[-1] + 1, bench.seeds[-1] + 1 + config.independents)]
    marker = [seeds[-1] + 1] if "radioactive" in config.schemes else []
    teachers = {seed: bench.teacher(seed) for seed in [*seeds, *marker]}
    independents = [teachers[seed] for seed in seeds[len(bench.seeds) :]]
    network = bench.network(config.teacher)

    def at(name: str, seed: int) -> SchemeRun:
        return SchemeRun(config, bench, name, seed, network, teachers)

    budget = {"real_samples": len(bench.dataset.train), "training_steps": config.teacher_steps}
    unmarked = Arm("teacher", f"Unmarked ({config.teacher})", "teacher", budget=budget)
    other = Arm("independent", "Unmarked, trained independently", "anchor", budget=budget)
    control = Arm("control", "Unmarked, same budget", "control", budget=budget)
    more = {**budget, "fine_tuning_steps": config.frontier_steps}
    longer = Arm("frontier_stitching_control", "Unmarked, trained on", "control", budget=more)
    for index, seed in enumerate(bench.seeds):
        teacher = teachers[seed]
        bench.record(unmarked, teacher)
        bench.record(other, independents[index % len(independents)], teacher)
        bench.record(control, teacher, teacher)
        bench.keep("control", Pool(*_first(bench), jnp.int32(500), ()), seed)
        if "frontier_stitching" in config.schemes:
            tuned = _fine_tuned(at(longer.name, seed), teacher, bench.train, config.frontier_steps)
            bench.record(longer, tuned, teacher)
    least = 1 / len(independents)
    bench.notes.append(
        f"Zhang's triggers: the p-value is the larger of the rank among {len(independents)} clean networks and the binomial one "
        f"against their pooled rate; it cannot fall below 1/{len(independents) + 1}, nor below 1/{len(independents)} for a clean "
        f"network"
        + (
            "."
            if least <= config.alpha
            else f", so that nothing can be claimed at {config.alpha:g}: take more of them."
        )
    )
    arms = [unmarked, other, control, *([longer] if longer.accuracy else [])]
    return arms + [_arm([at(name, seed) for seed in bench.seeds], independents) for name in config.schemes]


def _first(bench: Workbench) -> tuple[Array, Array]:
    images, labels = bench.train
    return jnp.asarray(as_pixels(images[:500])), labels[:500]


def _arm(runs: Sequence[SchemeRun], independents: Sequence[Classifier]) -> Arm:
    """A scheme over its seeds."""
    name, config, bench = runs[0].name, runs[0].config, runs[0].bench
    label, make = SCHEMES[name]
    count = len(bench.dataset.train)
    budget = {"real_samples": count, "training_steps": config.teacher_steps}
    arm = Arm(name, label, "method", budget={**budget, "extraction_steps": config.extraction_steps})
    arm.budget["victim_rows"] = min(count, config.extraction_rows)
    for run in runs:
        marked = make(run)
        if marked.pictures is not None:
            bench.keep(name, Pool(*marked.pictures, jnp.int32(len(marked.pictures.labels)), ()), run.seed)
        pool = marked.pool or bench.train
        clone = _extracted(run, marked, pool[0])
        tune = lambda network, run=run, pool=pool: _fine_tuned(run, network, pool, config.fine_tune_steps)
        # behind DAWN the victim carries no mark: the clone is the first to have one
        suspects = {"": marked.network, "fine_tuned_": tune(marked.network)} if marked.served is None else {}
        suspects["extracted_"] = clone
        if marked.served is not None:
            suspects["extracted_fine_tuned_"] = tune(clone)
        metrics = {}
        for what, suspect in suspects.items():
            metrics |= _judged(run, marked, what, suspect, independents)
        found = [marked.judge(one, [*independents[:i], *independents[i + 1 :]]) for i, one in enumerate(independents)]
        metrics["independent_success"] = float(np.mean([success for success, _ in found]))
        accused = [p < config.alpha for _, p in found]
        if marked.afresh is not None:
            accused = [
                marked.afresh(draw, i) < config.alpha for draw in range(_DRAWS) for i in range(len(independents))
            ]
        metrics["false_alarm_rate"] = 100 * float(np.mean(accused))
        shown: Any = marked.network if marked.served is None else _Answering(marked.served, run.classes)
        bench.record(arm, shown, run.teachers[run.seed], **metrics)
    return arm


def _judged(
    run: SchemeRun, marked: Marked, what: str, suspect: Classifier, independents: Sequence[Classifier]
) -> dict[str, float]:
    """Success and log₁₀ p of a suspect, and its accuracy where the arm does not show it."""
    found = {}
    config, test = run.config, run.bench.dataset.test
    if what:
        found[f"{what}accuracy"] = 100 * accuracy(suspect.predict(test.images), test.labels)
    if run.name == "uchida" and what == "extracted_" and config.student != config.teacher:
        return found  # another network has no such layer to read
    success, p_value = marked.judge(suspect, independents)
    return {**found, f"{what}success": success, f"{what}log10_p": float(np.log10(max(p_value, 1e-300)))}


def _fine_tuned(run: SchemeRun, network: Classifier, pool: tuple[Array, Array], steps: int) -> Classifier:
    """All layers, trained on with clean data."""
    method = training(
        network,
        *pool,
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", run.config.fine_tune_learning_rate, steps),
        batch_size=run.config.teacher_batch,
        fine_tune=True,
    )
    return trained(network, run.bench.stage("fine_tuning", f"{run.name}/fine_tuning", run.seed, method, steps))


def _extracted(run: SchemeRun, marked: Marked, images: Array) -> Classifier:
    """A clone from the labels that the marked network, or its endpoint, answers for the first training images."""
    config, bench = run.config, run.bench
    images = images[: config.extraction_rows]
    if marked.served is None:
        answers = marked.network.predict(np.asarray(images)).argmax(1)
    else:
        answers = marked.served(as_pixels(images))
    clone = run.network if config.student == config.teacher else bench.network(config.student)
    method = training(
        clone,
        images,
        jnp.asarray(answers, jnp.int32),
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", config.teacher_learning_rate, config.extraction_steps),
        batch_size=config.teacher_batch,
    )
    state = bench.stage("extraction", f"{run.name}/extraction", run.seed, method, config.extraction_steps)
    return trained(clone, state)


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
        execute=execute,
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
        by_seed=False,
    )
)

__all__ = ["WatermarkSchemeSettings", "execute"]
