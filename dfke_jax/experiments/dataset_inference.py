"""Dataset inference: which thieves it finds, whom it accuses wrongly, and where it ends."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.mesh import replicate
from dfke_jax.core.types import Array
from dfke_jax.dataset_inference import (
    RELEASED,
    BlindWalkSettings,
    InferenceSettings,
    Verdict,
    all_held_out_scores,
    prepare,
)
from dfke_jax.dataset_inference.case import Case, Embedded, compare, embed, scores
from dfke_jax.dataset_inference.regressor import Layout
from dfke_jax.dataset_inference.statistics import MINIMUM_NULL
from dfke_jax.dataset_inference.verdict import judge_embedded
from dfke_jax.distillation.data_impressions import ImpressionSettings
from dfke_jax.distillation.response import cross_entropy_training
from dfke_jax.evaluation import accuracy, agreement
from dfke_jax.experiments.registry import Recipe, register
from dfke_jax.experiments.result import Arm
from dfke_jax.experiments.settings import Settings, augmentation
from dfke_jax.experiments.thieves import THREATS, Parts, Theft, cut, fine_tuning, independent_models, member, shares
from dfke_jax.experiments.workbench import Answers, Workbench
from dfke_jax.nn import registry
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained

_SMALL_GAP = 10.0
"""Points of accuracy on private above public samples below which a run warns of little power."""


@dataclasses.dataclass(frozen=True)
class TheftSettings(Settings):
    """Settings of dataset inference: data, victim, thieves, and the test. The teacher is the victim's network."""

    private: int = 600
    """Images that the victim is trained on."""
    samples: int = 600
    """How many of them, and of public ones, the owner works with; a part trains the regressor, suspects see the rest."""
    others: int = 2000
    """Images that thieves ask the victim about, or fine-tune it on."""
    other_network: str = "mlp_small"
    """Network of the thief who trains another architecture."""
    impressions: int = 500
    """Images that the zero-shot thief synthesises."""
    synthesis: ImpressionSettings = ImpressionSettings(steps=200)
    """How they are made."""
    fine_tuning_steps: int = 300
    """Steps of fine-tuning the victim."""
    fine_tuning_rate: float = 0.01
    """Learning rate of it (SGD with momentum)."""
    adversarial_steps: int = 3
    """PGD steps of the thief who trains adversarially."""
    epsilon: float = 0.05
    """How far these may move a pixel."""
    answer_noise: float = 0.2
    """Deviation of the noise that a thief adds to the probabilities that a stolen model answers."""
    early: float = 0.1
    """Share of the training after which the thief who stops early stops."""
    inference: InferenceSettings = InferenceSettings(walk=BlindWalkSettings(noise=4.0))
    """How a suspect is tested."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("private", "samples", "others", "impressions", "fine_tuning_steps", "adversarial_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.samples > self.private:
            raise InputError(f"samples ({self.samples}) are private images, of which there are {self.private}")
        if not (self.fine_tuning_rate > 0 and self.epsilon >= 0 and self.answer_noise >= 0 and 0 < self.early <= 1):
            raise InputError(
                "fine_tuning_rate must be positive, epsilon and answer_noise not negative and early in (0, 1], got "
                f"{self.fine_tuning_rate}, {self.epsilon}, {self.answer_noise} and {self.early}"
            )
        registry.describe(self.other_network)


@dataclasses.dataclass(frozen=True)
class DatasetInferenceSettings(TheftSettings):
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
        least = max(MINIMUM_NULL + 1, int(np.floor(1 / self.inference.alpha)) + 1)
        if self.independents < least:
            raise InputError(
                f"independents must be at least {least} for alpha {self.inference.alpha}, got {self.independents}"
            )
        if self.references < 0:
            raise InputError(f"references must not be negative, got {self.references}")


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


def _theft(config: TheftSettings, bench: Workbench, seed: int) -> tuple[Theft, int]:
    """The seed's data and its victim, and how many repeated images were left out."""
    train = bench.dataset.train
    sizes = config.private, config.samples, config.others
    parts, repeated = cut(train.images, train.labels, sizes, seed)
    network = bench.network(config.teacher)
    images, labels = map(jnp.asarray, parts.private)
    method = cross_entropy_training(
        network,
        images,
        labels,
        steps=config.teacher_steps,
        batch_size=config.teacher_batch,
        learning_rate=config.teacher_learning_rate,
        augment=augmentation(config.teacher_augmentation),
    )
    state = bench.stage("victim", "victim", seed, method, config.teacher_steps, rows=config.teacher_batch)
    return Theft(bench, config, seed, parts, trained(network, state)), repeated


def _first(samples: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    return samples[0][:count], samples[1][:count]


def _distances(bench: Workbench, case: Case, seed: int, name: str, model: Any) -> Embedded:
    """A model on the case's samples; kept in the run's directory, so that a resumed run does not walk again."""
    path = bench.out / "distances" / f"seed{seed}" / f"{name}.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["data"]) == bench.data_fingerprint:
                distances, correct = (
                    (stored[f"{what}_private"], stored[f"{what}_public"]) for what in ("distances", "correct")
                )
                queries, sent, gradients, never = stored["counts"].tolist()
                return Embedded(distances, correct, int(queries), int(sent), int(gradients), never)
    with bench.clock("inference"), _all_devices(bench):
        model = _everywhere(bench, getattr(model, "answer", model))
        found = embed(model, case.samples, case.key, case.settings, case.box)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{name}.tmp.npz")
    np.savez_compressed(
        temporary,
        data=bench.data_fingerprint,
        distances_private=found.distances[0],
        distances_public=found.distances[1],
        correct_private=found.correct[0],
        correct_public=found.correct[1],
        counts=np.array([found.queries, found.rows_sent, found.gradients, found.never]),
    )
    temporary.replace(path)
    return found


def _all_devices(bench: Workbench) -> contextlib.AbstractContextManager:
    """Every device walks with a share of the samples."""
    return jax.set_mesh(bench.mesh) if bench.mesh else contextlib.nullcontext()


def _everywhere(bench: Workbench, model: Any) -> Any:
    return replicate(model, bench.mesh) if bench.mesh else model


def _enter(arm: Arm, figures: dict[str, float]) -> None:
    """Adds one seed's figures; p-values keep all their digits."""
    for name, value in figures.items():
        arm.metrics.setdefault(name, []).append(float(value))


def _figures(verdict: Verdict) -> dict[str, float]:
    low, high = verdict.test.interval
    return {
        "effect": verdict.test.effect,
        "effect_low": max(low, -2.0),  # scores lie in [−1, 1]
        "effect_high": min(high, 2.0),
        **verdict.p_values,
        "stolen": 100.0 * verdict.stolen,
        "queries": verdict.queries,
        "rows_sent": verdict.rows_sent,
        "gradients": verdict.gradients,
        "never": verdict.never,
        "saturated": verdict.saturated,
        **{f"p_at_{m}": p for m, p in zip(verdict.curve.samples.tolist(), verdict.curve.median, strict=True)},
    }


# ---- the table of threat models


def execute(config: DatasetInferenceSettings, bench: Workbench) -> list[Arm]:
    """The victim, independent models, and every thief, each put to the test."""
    source = Arm("source", f"Victim ({config.teacher})", "teacher")
    control = Arm("control", f"Independent models ({config.independents})", "control")
    thieves = {name: Arm(name, THREATS[name].label, "method") for name in config.threats}
    for seed in bench.seeds:
        theft, repeated = _theft(config, bench, seed)
        innocent, disjoint = _innocent(theft)
        if seed == config.seed:
            bench.notes += _layout_notes(config, theft.parts, repeated, disjoint)
        case = _case(theft, innocent[: config.references])
        source.budget = {"private_samples": config.private, "steps": config.teacher_steps}
        control.budget = {"independent_samples": config.private, "steps": config.teacher_steps}
        victim = _distances(bench, case, seed, "source", theft.victim)
        case = _controls(control, case, victim, theft, innocent[config.references :])
        bench.record(source, theft.victim)
        _try(source, case, victim, bench, seed)
        bench.notes.append(_gap(case, seed))
        if not source.metrics["stolen"][-1]:
            bench.notes.append(
                f"Seed {seed}: the victim itself is not recognised (Welch p = {case.control:.3g}, conformal p = "
                f"{source.metrics['conformal'][-1]:.3g}). The test has no power on {config.dataset} with this victim, so "
                "nothing follows from any p-value of this seed."
            )
        for name, arm in thieves.items():
            suspect = THREATS[name].make(theft)
            arm.budget = suspect.budget
            bench.record(arm, suspect.model, theft.victim)
            _try(arm, case, _distances(bench, case, seed, name, suspect.model), bench, seed)
    return [source, control, *thieves.values()]


def _gap(case: Case, seed: int) -> str:
    private, public = (100 * case.victim_accuracy[side] for side in ("private", "public"))
    small = "; where it learnt so little by heart there is little to find" if private - public < _SMALL_GAP else ""
    return (
        f"Seed {seed}: the victim is right on {private:.1f} % of private and {public:.1f} % of public samples{small}."
    )


def _try(arm: Arm, case: Case, found: Embedded, bench: Workbench, seed: int) -> None:
    verdict = judge_embedded(case, found)
    _enter(arm, _figures(verdict))
    # what weakens all verdicts is said once, with the victim's
    own = (
        verdict.notes if arm.role == "teacher" else [n for n in verdict.notes if n.startswith("the suspect's accuracy")]
    )
    bench.notes += [f"{arm.label}, seed {seed}: {note}." for note in own]


def _innocent(theft: Theft) -> tuple[list[Classifier], bool]:
    """References and independent models, trained as one program, and whether no two of them share an image."""
    config, bench, (images, labels) = theft.config, theft.bench, theft.parts.innocent
    assert isinstance(config, DatasetInferenceSettings)
    members = config.references + config.independents
    rows = shares(len(images), members, config.private, theft.seed)
    network = bench.network(config.teacher)
    method = independent_models(
        network,
        jnp.asarray(images[rows]),
        jnp.asarray(labels[rows]),
        steps=config.teacher_steps,
        batch_size=config.teacher_batch,
        learning_rate=config.teacher_learning_rate,
    )
    per_step = members * config.teacher_batch
    state = bench.stage(
        "independents", "independents", theft.seed, method, config.teacher_steps, rows=per_step, members=members
    )
    return [member(network, state, index) for index in range(members)], members * config.private <= len(images)


def _case(theft: Theft, references: Sequence[Classifier] = (), public: tuple | None = None) -> Case:
    config, bench = theft.config, theft.bench
    with bench.clock("inference"), _all_devices(bench):
        return prepare(
            _first(theft.parts.private, config.samples),
            public or theft.parts.public,
            victim=_everywhere(bench, theft.victim),
            key=bench.key(theft.seed, "walks"),
            references=[_everywhere(bench, model) for model in references],
            settings=config.inference,
        )


def _controls(arm: Arm, case: Case, victim: Embedded, theft: Theft, models: Sequence[Classifier]) -> Case:
    """Tests every independent model against the others; returns the case with all of them as its null."""
    bench, seed, test = theft.bench, theft.seed, theft.bench.dataset.test
    found = [_distances(bench, case, seed, f"independent{i}", model) for i, model in enumerate(models)]
    null = tuple(compare(*scores(case, one)) for one in found)
    verdicts = [judge_embedded(case._replace(null=null[:i] + null[i + 1 :]), one) for i, one in enumerate(found)]
    figures = [_figures(verdict) for verdict in verdicts]
    middle = {name: float(np.median([one[name] for one in figures])) for name in figures[0] if name != "stolen"}
    alpha = case.settings.alpha
    accused = {
        "welch": [verdict.p_values["welch"] < alpha for verdict in verdicts],
        "conformal": [verdict.p_values["conformal"] < alpha for verdict in verdicts],
        "per_image": [p < alpha for p in _layout_p(victim, found, "per_image")],
        "released": [p < alpha for p in _layout_p(victim, found, "released")],
    }
    rates = {f"false_positives_{name}": 100 * float(np.mean(flags)) for name, flags in accused.items()}
    _enter(arm, {**middle, "stolen": 100 * float(np.mean([verdict.stolen for verdict in verdicts])), **rates})
    with bench.clock("evaluation"):
        logits = [model.predict(test.images) for model in models]
        answers = theft.victim.predict(test.images)
    arm.accuracy.append(round(100 * float(np.mean([accuracy(one, test.labels) for one in logits])), 4))
    arm.agreement.append(round(100 * float(np.mean([agreement(one, answers) for one in logits])), 4))
    counts = {name: f"{sum(flags)} of {len(flags)}" for name, flags in accused.items()}
    bench.notes.append(
        f"Seed {seed}: of the independent models, each held against the others, the Welch test accuses {counts['welch']} at "
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


# ---- the two limits


def execute_limits(config: LimitsSettings, bench: Workbench) -> list[Arm]:
    """The victim and a distilled copy under overlapping public samples; the victim as it forgets."""
    arms = [
        Arm("source", f"Victim ({config.teacher})", "teacher"),
        Arm("distillation", THREATS["distillation"].label, "method"),
        Arm("forgetting", "Victim, fine-tuned on a new task", "method"),
    ]
    for seed in bench.seeds:
        theft, _ = _theft(config, bench, seed)
        copy = THREATS["distillation"].make(theft)
        arms[0].budget = {"private_samples": config.private, "steps": config.teacher_steps}
        arms[1].budget = copy.budget
        bench.record(arms[0], theft.victim)
        bench.record(arms[1], copy.model, theft.victim)
        for percent in config.overlaps:
            case = _case(theft, public=_overlapping(theft, percent))
            for arm, model in ((arms[0], theft.victim), (arms[1], copy.model)):
                verdict = judge_embedded(case, _distances(bench, case, seed, f"{arm.name}_overlap{percent}", model))
                figures = _figures(verdict)
                if percent == config.overlaps[0]:
                    _enter(arm, figures)
                _enter(arm, {f"{name}_overlap_{percent}": figures[name] for name in ("effect", "welch")})
        _forget(arms[2], theft, _case(theft))
    bench.notes += [
        "Overlap: so many of the public samples were among the victim's training images as well, other ones than the private "
        "samples. The test compares the two, so what the victim has seen on both sides is no evidence.",
        "Forgetting: the victim is fine-tuned on other images with their labels permuted. Its classes are matched to the "
        "owner's one to one, as they agree best on the samples shown, before it is tested.",
        "Decided by the Welch test; there are no independent models in this recipe.",
    ]
    return arms


def _overlapping(theft: Theft, percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Public samples of which a share are private images that are not among the private samples."""
    samples = theft.config.samples
    known = round(percent * samples / 100)
    images, labels = (
        np.concatenate([new[: samples - known], old[samples : samples + known]])
        for new, old in zip(theft.parts.public, theft.parts.private, strict=True)
    )
    return images, labels


def _forget(arm: Arm, theft: Theft, case: Case) -> None:
    """Fine-tunes the victim further and further, and tests it on the way."""
    config, bench, seed = theft.config, theft.bench, theft.seed
    assert isinstance(config, LimitsSettings)
    images, labels = map(jnp.asarray, theft.parts.others)
    moved = np.random.default_rng(seed).permutation(bench.dataset.num_classes)
    model, taken, test = theft.victim, 0, bench.dataset.test
    figures = {}
    for steps in config.forgetting:
        if steps > taken:
            method = fine_tuning(
                model, images, jnp.asarray(moved)[labels], config.fine_tuning_rate, config.distillation_batch
            )
            state = bench.stage(
                "theft", f"forgetting{steps}", seed, method, steps - taken, rows=config.distillation_batch
            )
            model, taken = trained(model, state), steps
        answers = Partial(_matched, model, jnp.asarray(_best_match(model, case)))
        found = _distances(bench, case, seed, f"forgetting{steps}", answers)
        figures = _figures(judge_embedded(case, found))
        _enter(arm, {f"{name}_after_{steps}": figures[name] for name in ("effect", "welch")})
        right = accuracy(model.predict(test.images), moved[test.labels])
        _enter(arm, {f"new_task_after_{steps}": round(100 * right, 4)})
    _enter(arm, figures)
    arm.budget = {"other_samples": len(images), "steps": taken}
    bench.record(arm, Answers(Partial(_matched, model, jnp.asarray(_best_match(model, case)))), theft.victim)


def _best_match(model: Classifier, case: Case) -> np.ndarray:
    """(K,) for each of the owner's classes the model's class that answers it most often, one to one."""
    from scipy.optimize import linear_sum_assignment

    images, labels = (np.concatenate(both) for both in zip(*case.samples, strict=True))
    counts = np.zeros((model.num_classes,) * 2)
    np.add.at(counts, (labels, model.predict(images).argmax(1)), 1)
    return linear_sum_assignment(counts, maximize=True)[1]


def _matched(model: Classifier, order: Array, images: Array) -> Array:
    return model(images)[:, order]


_PAPER = "Maini, Yaghini, Papernot: Dataset Inference: Ownership Resolution in Machine Learning, ICLR 2021"
_SMALL_WALK = BlindWalkSettings(starts=5, noise=4.0)
_DIGITS = {
    "teacher": "mlp_small",
    "student": "mlp_small",
    "other_network": "hinton_mlp_half",
    "private": 300,
    "samples": 300,
    "others": 200,
    "teacher_steps": 300,
    "teacher_batch": 64,
    "distillation_steps": 300,
    "fine_tuning_steps": 50,
    "impressions": 200,
    "independents": 21,
    "references": 2,
    "seeds": 1,
    "inference": InferenceSettings(walk=_SMALL_WALK, permutations=999),
}
_SYNTHETIC = {
    "teacher": "mlp_small",
    "student": "mlp_small",
    "other_network": "hinton_mlp_half",
    "teacher_steps": 1000,
    "teacher_batch": 64,
    "distillation_steps": 1000,
    "augmentation": "none",
    "independents": 30,
    "inference": InferenceSettings(walk=_SMALL_WALK),
}
_FASHION = {
    "other_network": "mlp_small",
    "private": 2000,
    "samples": 1000,
    "others": 8000,
    "teacher_steps": 1500,
    "teacher_batch": 64,
    "distillation_steps": 1500,
    "impressions": 1000,
    "synthesis": ImpressionSettings(
        steps=200, start="smooth", start_mean=(0.0, 1.0), start_sd=(0.0, 1.0), total_variation=(0.002, 0.032)
    ),
    "seeds": 1,
    "independents": 21,
    "references": 3,
    "inference": InferenceSettings(walk=_SMALL_WALK),
}
_LIMITS = {
    "digits": {"private": 300, "samples": 150},
    "synthetic": {"private": 600, "samples": 300},
    "fashion_mnist": {"private": 2000, "samples": 1000},
}
_PRESETS: dict[str, dict[str, Any]] = {
    "digits": _DIGITS,
    "synthetic": _SYNTHETIC,
    "fashion_mnist": _FASHION,
    "mnist": _FASHION,
}


def _limits_preset(name: str) -> dict[str, Any]:
    shared = {key: value for key, value in _PRESETS[name].items() if key not in ("independents", "references")}
    return {**shared, **_LIMITS[name]}


register(
    Recipe(
        name="dataset-inference",
        title="Dataset inference against threat models",
        summary="Tests whether suspects were made from the victim's private images: the victim, nine kinds of stolen model, "
        "three of them made to escape, and independent models trained on disjoint data, on which false alarms are counted. "
        "Where the victim itself is not recognised the method has no power, and the run says so.",
        paper=_PAPER,
        config=DatasetInferenceSettings,
        execute=execute,
        datasets=("digits", "synthetic", "fashion_mnist", "mnist"),
        presets=_PRESETS,
    )
)

register(
    Recipe(
        name="dataset-inference-limits",
        title="Limits of dataset inference",
        summary="The p-value as public samples overlap with the victim's training data, from none to all, and as a stolen "
        "model is fine-tuned on a new task.",
        paper=_PAPER,
        config=LimitsSettings,
        execute=execute_limits,
        datasets=("digits", "synthetic", "fashion_mnist"),
        presets={name: _limits_preset(name) for name in _LIMITS},
    )
)

__all__ = ["DatasetInferenceSettings", "LimitsSettings", "TheftSettings", "execute", "execute_limits"]
