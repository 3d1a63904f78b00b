"""Two-layer ReLU networks, functionally equivalent: ours, the published algorithm, and learning."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError
from dfke_jax.core.method import HostAttack
from dfke_jax.experiments.bench.registry import TABLE, Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import SupervisedSettings
from dfke_jax.extraction import (
    ReluNetwork,
    ReluSearch,
    gradient_network,
    refined,
    relu_network,
    second_differences,
)
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Ledger, Metered

_PAPER = "Jagielski et al., High Accuracy and High Fidelity Extraction, USENIX Security 2020"


@dataclasses.dataclass(frozen=True)
class HiddenLayerSettings(SupervisedSettings):
    """A victim of one hidden layer, and a control that learns from its answers to random rows."""

    teacher: str = "mlp_32"
    """The victim, of one hidden layer: mlp_H for H neurons."""
    learning_rows: int = 4096
    """Random rows at most that the control learns from; no more than the attack asked."""
    learning_steps: int = 300
    """Steps of L-BFGS of that."""

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher.removeprefix("mlp_").isdigit():
            raise InputError(f"the victim has one hidden layer: mlp_H, not {self.teacher}")
        if min(self.learning_rows, self.learning_steps) < 1:
            raise InputError("learning_rows and learning_steps must be at least 1")


@dataclasses.dataclass(frozen=True)
class ReluExtractionSettings(HiddenLayerSettings):
    """Settings of relu-extraction."""

    baseline: bool = True
    """Whether the published algorithm is run as well."""


@dataclasses.dataclass(frozen=True, eq=False)
class DoubleNetwork:
    """A classifier of one hidden layer in NumPy and float64.

    Attributes:
      weights, bias, output, constant: of f(x) = relu(x W + b) A + c.
    """

    weights: np.ndarray
    bias: np.ndarray
    output: np.ndarray
    constant: np.ndarray

    @classmethod
    def of(cls, classifier: Classifier) -> "DoubleNetwork":
        """The same function as a classifier whose network is an `MLP` of one hidden layer; the
        classifier's normalisation is part of its first layer.
        """
        module = classifier.module
        assert isinstance(module, MLP)
        assert len(module.units) == 1
        hidden, head = (classifier.variables["params"][name] for name in ("dense1", "head"))
        parts = (hidden["kernel"], hidden["bias"], head["kernel"], head["bias"])
        weights, bias, output, constant = (np.asarray(part, np.float64) for part in parts)
        shape, scale = classifier.input_shape, classifier.preprocessing
        mean, std = (np.broadcast_to(values, shape).reshape(-1) for values in (scale.mean, scale.std))
        weights = weights / std[:, None]
        return cls(weights, bias - mean @ weights, output, constant)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Logits (B, K)."""
        rows = rows.reshape(len(rows), -1)
        return np.maximum(rows @ self.weights + self.bias, 0) @ self.output + self.constant

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities (B, K)."""
        logits = self(rows)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def explained(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logits (B, K), their gradients (B, K, D))."""
        flat = rows.reshape(len(rows), -1)
        on = (flat @ self.weights + self.bias > 0).astype(np.float64)
        return self(rows), (on[:, None, :] * self.output.T) @ self.weights.T


def arms(config: ReluExtractionSettings) -> list[Arm]:
    """The victim, another one trained like it, and every way to copy it."""
    control = "learning_control"
    found = [
        Arm("teacher", f"Victim ({config.teacher})", "teacher"),
        Arm("independent", "Another network, trained like it", "anchor"),
        Arm("jumps", "Jumps of gradients", "method", control=control),
        Arm("jumps_probabilities", "Jumps of gradients, of probabilities", "method", control=control),
        Arm("gradients", "Gradients revealed", "method", control=control),
        Arm("gradients_bisected", "Gradients revealed, bisection", "method", control=control),
    ]
    if config.baseline:
        found.append(Arm("second_differences", "Second differences", "method", control=control))
    return [*found, Arm(control, "Learning from random rows", "control")]


def measure(run: Run[ReluExtractionSettings]) -> None:
    """One seed: trains the victim, and copies it."""
    victim, dataset = DoubleNetwork.of(run.teacher), run.dataset
    run.record("teacher", run.teacher, budget=run.bench.supervised_budget)
    other = run.bench.supervised("relu_extraction_independent", run.config.teacher, run.seed)
    run.record("independent", other, budget=run.bench.supervised_budget)
    search = ReluSearch(dataset.shape)
    probabilities = dataclasses.replace(search, gives="probabilities")
    ways: dict[str, tuple[HostAttack, Callable]] = {
        "jumps": (relu_network(search), victim),
        "jumps_probabilities": (relu_network(probabilities), victim.probabilities),
        "gradients": (gradient_network(search), victim.explained),
        "gradients_bisected": (gradient_network(search, predicted=False), victim.explained),
    }
    if run.config.baseline:
        ways["second_differences"] = (second_differences(search), victim)
    asked = 0
    for name, (attack, answer) in ways.items():
        figures = run.once(name, lambda attack=attack, answer=answer: _copied(run, victim, attack, answer))
        asked = asked or int(figures["queries"])
        _enter(run, name, figures)
    _enter(run, "learning_control", run.once("learning", lambda: _learnt(run, victim, asked), asked))


def _enter(run: Run[ReluExtractionSettings], arm: str, figures: dict) -> None:
    metrics = {name: value for name, value in figures.items() if name not in ("accuracy", "agreement")}
    budget = {"networks": 1}
    run.enter(arm, metrics, accuracy=figures["accuracy"], agreement=figures["agreement"], budget=budget)


def _copied(
    run: Run[ReluExtractionSettings], victim: DoubleNetwork, attack: HostAttack, answer: Callable
) -> dict[str, float]:
    with Ledger() as ledger, run.clock("extraction"):
        metered = Metered(answer, ledger, "victim", "answers in float64", repeatable=True)
        solution = run_host(attack, metered, run.seed)
    return {**compared(run, victim, solution.found), "queries": float(solution.queries)}


def compared(run: Run[Any], victim: DoubleNetwork, found: ReluNetwork) -> dict[str, float]:
    """On the test images, and on as many random ones: accuracy, agreement, and the largest error of logits."""
    images = np.asarray(run.dataset.test.images, np.float64)
    images = images / 255 if run.dataset.test.images.dtype == np.uint8 else images
    noise = np.random.default_rng(run.seed).random((len(images), *run.dataset.shape))
    ours, theirs = found(images), victim(images)
    centred = lambda values: values - values.mean(1, keepdims=True)
    labels = ours.argmax(1)
    return {
        **run.by_class(labels)[0],
        "accuracy": round(100 * float((labels == np.asarray(run.dataset.test.labels)).mean()), 4),
        "agreement": round(100 * float((labels == theirs.argmax(1)).mean()), 4),
        "agreement_uniform": round(100 * float((found(noise).argmax(1) == victim(noise).argmax(1)).mean()), 4),
        "log10_error": round(float(np.log10(np.abs(centred(ours) - centred(theirs)).max() + 1e-300)), 2),
        "neurons": float(len(found.bias)),
    }


def _learnt(run: Run[ReluExtractionSettings], victim: DoubleNetwork, asked: int) -> dict[str, float]:
    """A network of the victim's size, learnt from random rows."""
    count = min(asked, run.config.learning_rows)
    with run.clock("distillation"):
        found = learnt(victim, run.dataset.shape, count, run.config.learning_steps, run.seed)
    return {**compared(run, victim, found), "queries": float(count)}


def learnt(victim: DoubleNetwork, shape: tuple[int, ...], count: int, steps: int, seed: int) -> ReluNetwork:
    """A network of a victim's size, fitted from a random start to its answers to `count` uniform rows."""
    rng = np.random.default_rng(seed)
    rows = rng.random((count, *shape))
    features, hidden = victim.weights.shape
    start = ReluNetwork(
        rng.normal(size=(features, hidden)) * np.sqrt(2 / features),
        np.zeros(hidden),
        rng.normal(size=(hidden, len(victim.constant))) * np.sqrt(2 / hidden),
        None,
        np.zeros(len(victim.constant)),
    )
    return refined(start, rows, victim(rows), steps=steps)


_TALK = "Jagielski et al., USENIX Security 2020, as in the authors' talk, 'Effectiveness of our Direct Recovery Attack'"
_NOTE = "fidelity at 25,000 parameters; the width that gives so many is ours"

RECIPE = register(
    Recipe(
        name="relu-extraction",
        title="Functionally equivalent extraction of two-layer ReLU networks",
        summary="The weights of a network of one hidden layer from its answers in float64: by jumps of "
        "gradients (ours), by the published second differences, and from revealed gradients; as a control "
        "a network of the same size learns from as many random rows.",
        paper=_PAPER,
        config=ReluExtractionSettings,
        arms=arms,
        measure=measure,
        published=(
            Published(
                "second_differences",
                "mnist",
                100.0,
                _TALK,
                "slides",
                _NOTE,
                differs="fidelity to the victim, beside which accuracy stands here",
            ),
        ),
        time="1 min, 2 CPU cores (digits)",
        datasets=("digits", "mnist", "fashion_mnist"),
        tables=True,
        presets={
            # second differences need as many features as neurons, which few tables have
            TABLE: {"teacher": "mlp_16", "teacher_steps": 1000, "baseline": False},
            "digits": {"teacher": "mlp_16", "teacher_steps": 1000},
            "mnist": {"teacher_steps": 2000},
            "fashion_mnist": {"teacher_steps": 2000},
        },
    )
)
