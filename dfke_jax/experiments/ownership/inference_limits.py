"""Where dataset inference ends: public samples that the victim knows, and a stolen model that forgets."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.dataset_inference.case import Case
from dfke_jax.dataset_inference.verdict import judge_embedded
from dfke_jax.evaluation import accuracy
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Series
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.workbench import Answers
from dfke_jax.experiments.ownership import views
from dfke_jax.experiments.ownership.findings import Finding, enter
from dfke_jax.experiments.ownership.settings import PAPER, PRESETS, TheftSettings
from dfke_jax.experiments.ownership.theft import case_of, distances_of, figures_of, new_theft
from dfke_jax.experiments.ownership.thieves import THREATS, Theft, fine_tuning
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained


@dataclasses.dataclass(frozen=True)
class LimitsSettings(TheftSettings):
    """Settings of the two limits."""

    overlaps: tuple[int, ...] = (0, 25, 50, 75, 100)
    """Per cent of the public samples that the victim was trained on as well."""
    forgetting: tuple[int, ...] = (0, 100, 200, 500, 1000, 2000, 5000, 10_000)
    """Steps of fine-tuning the stolen model on a new task after which it is tested."""

    def __post_init__(self):
        super().__post_init__()
        if not self.overlaps or min(self.overlaps) < 0 or max(self.overlaps) > 100:
            raise InputError(f"overlaps must lie in [0, 100] per cent, got {self.overlaps}")
        if not self.forgetting or self.forgetting[0] < 0 or list(self.forgetting) != sorted(set(self.forgetting)):
            raise InputError(f"forgetting must hold increasing numbers of steps, got {self.forgetting}")
        if 2 * self.samples > self.private:
            raise InputError(
                f"an overlap takes up to {self.samples} private images beside the {self.samples} that stand for private "
                f"ones: private must be at least {2 * self.samples}, got {self.private}"
            )


def arms(config: LimitsSettings) -> list[Arm]:
    """The victim and a distilled copy under overlapping public samples; the victim as it forgets."""
    budget = {"private_samples": config.private, "steps": config.teacher_steps}
    return [
        Arm("source", f"Victim ({config.teacher})", "teacher", budget=budget),
        Arm("distillation", THREATS["distillation"].label, "method"),
        Arm("forgetting", "Victim, fine-tuned on a new task", "method"),
    ]


def measure(run: Run[LimitsSettings]) -> None:
    """Tests them along both ways."""
    config = run.config
    theft, _ = new_theft(run)
    copy = THREATS["distillation"].make(theft)
    run.record("source", theft.victim)
    run.record("distillation", copy.model, beside=theft.victim, budget=copy.budget)
    found: dict[str, dict[float, Finding]] = {"source": {}, "distillation": {}}
    for percent in config.overlaps:
        case = case_of(theft, public=_overlapping(theft, percent))
        for name, model in (("source", theft.victim), ("distillation", copy.model)):
            distances = distances_of(theft, case, f"{name}_overlap{percent}", model)
            found[name][percent] = figures_of(judge_embedded(case, distances))
    for name, by_percent in found.items():
        enter(run, name, by_percent[config.overlaps[0]], series=_along("overlap", by_percent))
    _forget(theft, case_of(theft))
    run.note(
        "Overlap: so many of the public samples were among the victim's training images as well, other ones than the private "
        "samples. The test compares the two, so what the victim has seen on both sides is no evidence.",
        "Forgetting: the victim is fine-tuned on other images with their labels permuted. Its classes are matched to the "
        "owner's one to one, as they agree best on the samples shown, before it is tested.",
        "Decided by the Welch test; there are no independent models in this recipe.",
    )


def _along(over: str, found: dict[float, Finding]) -> list[Series]:
    """Effect and Welch p-value against what was varied."""
    return [
        Series.of_seed("effect", over, {x: one.metrics["effect"] for x, one in found.items()}),
        Series.of_seed("welch", over, {x: one.p_values["welch"] for x, one in found.items()}),
    ]


def _overlapping(theft: Theft, percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Public samples of which a share are private images that are not among the private samples."""
    samples = theft.config.samples
    known = round(percent * samples / 100)
    images, labels = (
        np.concatenate([new[: samples - known], old[samples : samples + known]])
        for new, old in zip(theft.parts.public, theft.parts.private, strict=True)
    )
    return images, labels


def _forget(theft: Theft, case: Case) -> None:
    """Fine-tunes the victim further and further, and tests it on the way."""
    run, config = theft.run, theft.config
    assert isinstance(config, LimitsSettings)
    images, labels = map(jnp.asarray, theft.parts.others)
    moved = np.random.default_rng(run.seed).permutation(run.dataset.num_classes)
    model, taken, test = theft.victim, 0, run.dataset.test
    found: dict[float, Finding] = {}
    new_task: dict[float, float] = {}
    for steps in config.forgetting:
        if steps > taken:
            method = fine_tuning(
                model, images, jnp.asarray(moved)[labels], config.fine_tuning_rate, config.distillation_batch
            )
            rows = config.distillation_batch
            state = run.stage("theft", f"forgetting{steps}", method, steps - taken, rows=rows)
            model, taken = trained(model, state), steps
        answers = Partial(_matched, model, jnp.asarray(_best_match(model, case)))
        distances = distances_of(theft, case, f"forgetting{steps}", answers)
        found[steps] = figures_of(judge_embedded(case, distances))
        new_task[steps] = round(100 * accuracy(model.predict(test.images), moved[test.labels]), 4)
    along = [*_along("forgetting", found), Series.of_seed("new_task", "forgetting", new_task)]
    enter(run, "forgetting", found[config.forgetting[-1]], series=along)
    answers = Answers(Partial(_matched, model, jnp.asarray(_best_match(model, case))))
    run.record("forgetting", answers, beside=theft.victim, budget={"other_samples": len(images), "steps": taken})


def _best_match(model: Classifier, case: Case) -> np.ndarray:
    """(K,) for each of the owner's classes the model's class that answers it most often, one to one."""
    from scipy.optimize import linear_sum_assignment

    images, labels = (np.concatenate(both) for both in zip(*case.samples, strict=True))
    counts = np.zeros((model.num_classes,) * 2)
    np.add.at(counts, (labels, model.predict(images).argmax(1)), 1)
    return linear_sum_assignment(counts, maximize=True)[1]


def _matched(model: Classifier, order: Array, images: Array) -> Array:
    return model(images)[:, order]


_LIMITS = {
    "digits": {"private": 300, "samples": 150},
    "synthetic": {"private": 600, "samples": 300},
    "fashion_mnist": {"private": 2000, "samples": 1000},
}


def _limits_preset(name: str) -> dict[str, Any]:
    read = {field.name for field in dataclasses.fields(LimitsSettings)}
    return {**{key: value for key, value in PRESETS[name].items() if key in read}, **_LIMITS[name]}


register(
    Recipe(
        name="dataset-inference-limits",
        title="Limits of dataset inference",
        summary="The p-value as public samples overlap with the victim's training data, from none to all, and as a stolen "
        "model is fine-tuned on a new task.",
        paper=PAPER,
        config=LimitsSettings,
        arms=arms,
        measure=measure,
        datasets=("digits", "synthetic", "fashion_mnist"),
        presets={name: _limits_preset(name) for name in _LIMITS},
        views=(views.THREATS, views.P_VALUES, views.LIMITS),
    )
)

__all__ = ["LimitsSettings", "arms", "measure"]
