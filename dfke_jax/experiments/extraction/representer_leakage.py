"""Kernel models give their training rows away: solved, searched, and drawn at random."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError
from dfke_jax.data import Table, load_table
from dfke_jax.evaluation import matched_rows
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.extraction.api_views import REPRESENTER_TABLE
from dfke_jax.extraction import (
    FittedModel,
    fitted_kernels,
    kernel_equation_rows,
    kernel_equations,
    kernel_regression,
)
from dfke_jax.extraction.cross_entropy import kernel_logs
from dfke_jax.nn.precision import Precision
from dfke_jax.oracle import Ledger, Metered, oracle_for, victims

RECOGNISED = 0.8
"""Correlation with a training row from which on a picture counts as recognised."""


@dataclasses.dataclass(frozen=True)
class RepresenterSettings:
    """Settings of representer-leakage."""

    stand_in: ClassVar[str] = "digits"

    dataset: str = "tables"
    """A name: the table is always that of digits, whose rows are pictures."""
    seeds: int = 3
    """How many seeds; each has its own split, victim and representers."""
    seed: int = 0
    """The first seed."""
    precision: Precision = "float32"
    """Read by the workbench alone: everything is float64."""
    representers: int = 20
    """Training rows that the victim is made of."""
    gamma: float = 0.03
    """Of its kernel exp(−γ ‖x − x_r‖²); a feature's range is 2."""
    iterations: int = 2000
    """Of the search, at most."""
    search: bool = True
    """Whether representers are searched for, too, as published."""
    price: float = 0.1
    """Dollars a thousand rows."""

    def __post_init__(self):
        if min(self.seeds, self.representers, self.iterations) < 1 or not self.gamma > 0 or self.price < 0:
            raise InputError("sizes must be at least 1, gamma positive, and the price no less than 0")


def arms(config: RepresenterSettings) -> list[Arm]:
    """The victim, other rows of the same digits, and the rows that are found."""
    found = [
        Arm("victim", f"Victim of {config.representers} representers", "teacher"),
        Arm("strangers", "Other digits, coefficients fitted to answers", "anchor"),
        Arm("equations", "Equations", "method", control="equations_control"),
        Arm("equations_control", "Rows drawn, coefficients fitted to as many answers", "control"),
    ]
    if config.search:
        found.append(Arm("search", "Search by cross-entropy, as published", "method", control="search_control"))
        found.append(Arm("search_control", "Rows drawn, coefficients fitted to as many answers", "control"))
    return found


def measure(run: Run[RepresenterSettings]) -> None:
    """One seed: a victim, and what is found of it."""
    config = run.config
    table = load_table("digits", jax.random.key(run.seed), data_dir=run.bench.data_dir)
    order = np.random.default_rng([run.seed, 1]).permutation(len(table.train_rows))
    kept, others = (table.train_rows[order[place : place + config.representers]] for place in (0, config.representers))
    with run.clock("anchors"):
        predict = _victim(table, kept, config.gamma)
    right = lambda model: 100 * float((model(table.test_rows).argmax(1) == table.test_targets).mean())
    alike = lambda model: 100 * float((model(table.test_rows).argmax(1) == predict(table.test_rows).argmax(1)).mean())
    run.enter("victim", accuracy=right(predict), budget={"victim_rows": 0})
    run.keep("victim", _pictures(kept), np.arange(config.representers))

    oracle: Any = oracle_for(
        victims.from_function(predict, input_shape=(table.schema.width,), num_classes=table.num_classes),
        transport="float64",
    )
    count = kernel_equation_rows(table.schema.width, table.num_classes, config.representers)
    unknowns = config.representers * (table.schema.width + table.num_classes) + table.num_classes
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "equations": (count, lambda: kernel_equations(table.schema, config.representers, config.gamma))
    }
    if config.search:
        ways["search"] = (
            5 * unknowns,
            lambda: kernel_regression(table.schema, config.representers, config.gamma, iterations=config.iterations),
        )
    drawn = table.schema.uniform(np.random.default_rng([run.seed, 2]), config.representers)

    def stolen(attack: Callable[[], Any]) -> dict[str, Any]:
        with Ledger() as ledger:
            model = run_host(attack(), Metered(oracle, ledger), run.seed).found
            return _written(model, int(ledger.counts()["rows"] or 0))

    with run.clock("extraction"):
        made = {"strangers": _fitted(run, table, predict, others, count)}
        for name, (rows, attack) in ways.items():
            made[name] = run.once(name, lambda attack=attack: stolen(attack))
            made[f"{name}_control"] = _fitted(run, table, predict, drawn, rows)
    for arm, found in made.items():
        parameters = {key: np.asarray(value) for key, value in found["parameters"].items()}
        model, queries = FittedModel(parameters, kernel_logs), found["queries"]
        rows = parameters["representers"]
        figures = {**_likeness(rows, kept), "queries": float(queries), "dollars": queries * config.price / 1000}
        run.enter(arm, figures, accuracy=right(model), agreement=alike(model), budget={"victim_rows": queries})
        places, _ = matched_rows(rows, kept)
        there = np.flatnonzero(places >= 0)
        run.keep(arm, _pictures(rows[places[there]]), there)


def _victim(table: Table, kept: np.ndarray, gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    """A logistic regression on kernels around training rows."""
    from sklearn.linear_model import LogisticRegression

    features = lambda rows: np.exp(-gamma * ((np.asarray(rows)[:, None] - kept[None]) ** 2).sum(-1))
    model = LogisticRegression(C=10.0, max_iter=2000).fit(features(table.train_rows), table.train_targets)
    return lambda rows: model.predict_proba(features(rows))


def _fitted(
    run: Run[RepresenterSettings], table: Table, predict: Callable, representers: np.ndarray, count: int
) -> dict[str, Any]:
    """The same without the step that finds representers: coefficients alone are fitted, to answers to uniform rows."""
    asked = table.schema.uniform(np.random.default_rng([run.seed, 3]), count)
    return _written(fitted_kernels(asked, predict(asked), representers, run.config.gamma), count)


def _written(model: FittedModel, queries: int) -> dict[str, Any]:
    return {"parameters": {k: np.asarray(v).tolist() for k, v in model.parameters.items()}, "queries": queries}


def _likeness(found: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    places, correlations = matched_rows(found, kept)
    apart = np.abs(np.asarray(found)[places] - kept).max(1)[places >= 0]
    return {
        "row_correlation": float(correlations.mean()),
        "recognised": 100 * float((correlations > RECOGNISED).mean()),
        "largest_row_error": float(apart.max()),
    }


def _pictures(rows: np.ndarray) -> np.ndarray:
    return np.clip((rows.reshape(-1, 8, 8, 1) + 1) / 2, 0, 1)


RECIPE = register(
    Recipe(
        name="representer-leakage",
        title="Kernel models give training rows away",
        summary="A kernel logistic regression is made of training rows. They are found by solving for them, a sum of "
        "exponentials, and by the published search; the control draws rows and fits the coefficients alone to as many "
        "answers.",
        paper="Tramèr et al., USENIX Security 2016, section 4.1.3",
        config=RepresenterSettings,
        arms=arms,
        measure=measure,
        time="2 min on one CPU core (3 seeds)",
        datasets=("tables",),
        presets={"tables": {}},
        views=(REPRESENTER_TABLE,),
    )
)
