"""Fidelity against the number of revealed gradients, and of random rows that are learnt from."""

import dataclasses

from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Series
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import SupervisedSettings
from dfke_jax.experiments.extraction.relu_extraction import DoubleNetwork, compared, learnt
from dfke_jax.extraction import ReluSearch, gradient_network
from dfke_jax.oracle import Ledger, Metered

_PAPER = "Milli, Schmidt, Dragan, Hardt: Model Reconstruction from Model Explanations, FAT* 2019"
CONTROL = "learning_control"
WAYS = {"predicted": "Gradients, points predicted", "bisected": "Gradients, bisection"}


@dataclasses.dataclass(frozen=True)
class GradientQueriesSettings(SupervisedSettings):
    """Settings of gradient-queries."""

    teacher: str = "mlp_32"
    """The victim, of one hidden layer: mlp_H for H neurons."""
    queries: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    """Numbers of rows that may be asked; everything is run from the beginning for each."""
    learning_steps: int = 300
    """Steps of L-BFGS of the control."""

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher.removeprefix("mlp_").isdigit():
            raise InputError(f"the victim has one hidden layer: mlp_H, not {self.teacher}")
        if not self.queries or list(self.queries) != sorted(set(self.queries)) or min(self.queries) < 1:
            raise InputError(f"queries must be increasing and at least 1, got {self.queries}")
        if self.learning_steps < 1:
            raise InputError(f"learning_steps must be at least 1, got {self.learning_steps}")


def arms(config: GradientQueriesSettings) -> list[Arm]:
    """The victim, another one, the attack in two forms, and learning from random rows."""
    return [
        Arm("teacher", f"Victim ({config.teacher})", "teacher"),
        Arm("independent", "Another network, trained like it", "anchor"),
        *(Arm(name, label, "method", control=CONTROL) for name, label in WAYS.items()),
        Arm(CONTROL, "Learning from random rows", "control"),
    ]


def measure(run: Run[GradientQueriesSettings]) -> None:
    """One seed: trains the victim, and copies it with every number of rows."""
    victim = DoubleNetwork.of(run.teacher)
    run.record("teacher", run.teacher, budget=run.bench.supervised_budget)
    other = run.bench.supervised("gradient_queries_independent", run.config.teacher, run.seed)
    run.record("independent", other, budget=run.bench.supervised_budget)
    for name in (*WAYS, CONTROL):
        _enter(
            run,
            name,
            {count: run.once(f"{name}_{count}", _copy(run, victim, name, count)) for count in run.config.queries},
        )


def _copy(run: Run[GradientQueriesSettings], victim: DoubleNetwork, name: str, count: int):
    """What one way reaches with a number of rows, as a function without arguments; nothing found is no agreement."""

    def make() -> dict[str, float]:
        shape = run.dataset.shape
        if name == CONTROL:
            with run.clock("distillation"):
                found = learnt(victim, shape, count, run.config.learning_steps, run.seed)
            return {**compared(run, victim, found), "rows": float(count), "whole": 0.0}
        attack = gradient_network(ReluSearch(shape), predicted=name == "predicted")
        with Ledger(budget=count) as ledger, run.clock("extraction"):
            metered = Metered(victim.explained, ledger, "victim", "values and gradients", repeatable=True)
            solution = run_host(attack, metered, run.seed)
        rows = {"rows": float(solution.queries), "whole": float(solution.complete)}
        if solution.found is None:
            return {"accuracy": 0.0, "agreement": 0.0, "agreement_uniform": 0.0, "log10_error": 300.0, **rows}
        return {**compared(run, victim, solution.found), **rows}

    return make


def _enter(run: Run[GradientQueriesSettings], arm: str, found: dict[int, dict[str, float]]) -> None:
    series = [
        Series.of_seed(name, "queries", {count: figures[name] for count, figures in found.items()})
        for name in ("agreement", "agreement_uniform", "log10_error")
    ]
    last = found[max(found)]
    metrics = {"rows": last["rows"], "whole": last["whole"]}
    budget = {"victim_rows": max(found)}
    run.enter(arm, metrics, accuracy=last["accuracy"], agreement=last["agreement"], budget=budget, series=series)


RECIPE = register(
    Recipe(
        name="gradient-queries",
        title="Two-layer ReLU networks from few gradients",
        summary="How faithful a copy is with so many rows, of which values and gradients are revealed: neurons are found by "
        "bisection as published, or predicted and confirmed. The control learns a network of the same size from the values "
        "of as many random rows. What was not found when the rows were spent is left out.",
        paper=_PAPER,
        config=GradientQueriesSettings,
        arms=arms,
        measure=measure,
        time="1 min, 2 CPU cores (digits)",
        datasets=("digits", "mnist", "fashion_mnist"),
        presets={
            "digits": {"teacher": "mlp_16", "teacher_steps": 1000},
            "mnist": {"teacher_steps": 2000},
            "fashion_mnist": {"teacher_steps": 2000},
        },
    )
)

__all__ = ["CONTROL", "RECIPE", "WAYS", "GradientQueriesSettings", "arms", "measure"]
