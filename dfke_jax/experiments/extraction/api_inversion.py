"""Extract, then invert: pictures of the classes from a stolen model, against those for which the victim is asked."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError
from dfke_jax.data import Table, load_table
from dfke_jax.evaluation import row_correlation
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.extraction.api_views import INVERSION_TABLE
from dfke_jax.experiments.extraction.thefts import THEFTS, Sizes, trained
from dfke_jax.extraction import (
    AffineModel,
    InversionSettings,
    inverted,
    log_probabilities,
    queried_inversion,
)
from dfke_jax.nn.precision import Precision
from dfke_jax.oracle import Ledger, Metered

_KINDS = {"softmax": ("Softmax", "linear", "equations"), "network": ("Network", "network", "hidden_layer")}


@dataclasses.dataclass(frozen=True)
class ApiInversionSettings:
    """Settings of api-inversion."""

    stand_in: ClassVar[str] = "digits"

    dataset: str = "tables"
    """A name: the table is always that of digits, whose rows are pictures."""
    seeds: int = 3
    """How many seeds; each has its own split and victims."""
    seed: int = 0
    """The first seed."""
    precision: Precision = "float32"
    """Read by the workbench alone: everything is float64."""
    hidden: int = 20
    """Units of the network."""
    iterations: int = 1000
    """Of the search for the network, at most."""
    steps: int = 100
    """Of the ascent, at most."""
    rate: float = 0.5
    """Length of its steps; a feature's range is 2."""
    confidence: float = 0.99
    """At which it ends."""
    price: float = 0.1
    """Dollars a thousand rows."""

    def __post_init__(self):
        if min(self.seeds, self.hidden, self.iterations) < 1 or self.price < 0:
            raise InputError("sizes must be at least 1, and the price no less than 0")
        InversionSettings(self.steps, self.rate, self.confidence)


def arms(config: ApiInversionSettings) -> list[Arm]:
    """Both victims, another softmax model, and every way to invert them."""
    found = []
    for kind, (label, *_) in _KINDS.items():
        found.append(Arm(f"{kind}_victim", f"{label}: victim, class means", "teacher"))
        found.append(Arm(f"{kind}_independent", f"{label}: another model, inverted", "anchor"))
        control = f"{kind}_extracted_control"
        found.append(Arm(f"{kind}_extracted", f"{label}: extracted, then inverted", "method"))
        found.append(Arm(f"{kind}_queried", f"{label}: inverted by asking", "method", control=control))
        found.append(Arm(control, f"{label}: fitted to labels of uniform rows, then inverted", "control"))
    return found


def measure(run: Run[ApiInversionSettings]) -> None:
    """One seed: both victims, stolen and inverted, and inverted by asking."""
    table = load_table("digits", jax.random.key(run.seed), data_dir=run.bench.data_dir)
    for kind in _KINDS:
        _measure_kind(run, kind, table)


def _measure_kind(run: Run[ApiInversionSettings], kind: str, table: Table) -> None:
    config, (_, victim_kind, attack) = run.config, _KINDS[kind]
    sizes = Sizes(hidden=config.hidden, iterations=config.iterations)
    settings = InversionSettings(config.steps, config.rate, config.confidence)
    classes = range(table.num_classes)
    means = np.stack([table.train_rows[table.train_targets == k].mean(0) for k in classes])
    theft = THEFTS[attack]
    with run.clock("anchors"):
        victim = trained(victim_kind, table, sizes)
        other = trained(victim_kind, table, sizes, np.random.default_rng([run.seed, 3]))
    oracle = theft.oracle(victim, table, sizes)

    def from_the_extracted() -> tuple[np.ndarray, int, float]:
        with Ledger() as ledger:
            found = run_host(theft.attack(table, sizes), Metered(oracle, ledger), run.seed).found
            rows = ledger.counts()["rows"] or 0
        return inverted(log_probabilities(found), table.schema, classes, settings), rows, _alike(found, victim, table)

    def by_asking() -> tuple[np.ndarray, int, float]:
        with Ledger() as ledger:
            found = run_host(queried_inversion(table.schema, classes, settings), Metered(oracle, ledger), run.seed)
            return found.found, ledger.counts()["rows"] or 0, 100.0

    def of_labels(count: int) -> tuple[np.ndarray, int, float]:
        rows = table.schema.uniform(np.random.default_rng([run.seed, 1]), count)
        labels = victim.predict(rows)
        from sklearn.linear_model import LogisticRegression

        made = LogisticRegression(max_iter=1000).fit(rows, labels)
        weights, bias = np.zeros((rows.shape[1], table.num_classes)), np.full(table.num_classes, -1e3)
        weights[:, made.classes_], bias[made.classes_] = made.coef_.T, made.intercept_  # classes never seen: none
        found = AffineModel(weights, bias, "softmax")
        return inverted(log_probabilities(found), table.schema, classes, settings), count, _alike(found, victim, table)

    def of_another() -> tuple[np.ndarray, int, float]:
        asked = run_host(queried_inversion(table.schema, classes, settings), other.predict_proba, run.seed)
        return asked.found, 0, _alike(other.predict_proba, victim, table)

    with run.clock("extraction"):
        made: dict[str, Any] = {"extracted": run.once(f"{kind}_extracted", from_the_extracted)}
        count = int(made["extracted"][1])
        made["queried"] = run.once(f"{kind}_queried", by_asking)
        made["extracted_control"] = run.once(f"{kind}_control", lambda: of_labels(count))
        made["independent"] = run.once(f"{kind}_independent", of_another)
    made["victim"] = (means, 0, None)
    for name, (rows, queries, alike) in made.items():
        rows = np.asarray(rows)
        answers = victim.predict_proba(rows)
        own = answers[np.arange(len(rows)), list(classes)]
        middle = table.train_rows.mean(0)
        figures = {
            "confidence": 100 * float(own.mean()),
            "correlation": float(
                np.mean([row_correlation(a - middle, b - middle) for a, b in zip(rows, means, strict=True)])
            ),
            "queries": float(queries),
            "dollars": queries * config.price / 1000,
        }
        right = round(100 * float((answers.argmax(1) == np.arange(len(rows))).mean()), 4)
        arm, budget = f"{kind}_{name}", {"victim_rows": int(queries)}
        run.enter(arm, figures, accuracy=right, agreement=alike, budget=budget)
        run.keep(arm, (rows.reshape(-1, 8, 8, 1) + 1) / 2, np.arange(len(rows)))


def _alike(model: Any, victim: Any, table: Table) -> float:
    return round(100 * float((model(table.test_rows).argmax(1) == victim.predict(table.test_rows)).mean()), 4)


RECIPE = register(
    Recipe(
        name="api-inversion",
        title="Extract, then invert",
        summary="For every digit a picture of which a model is sure: by ascent on the model that equations or "
        "cross-entropy extracted, and by asking the victim for differences. The control inverts a softmax "
        "model that was fitted to the labels of as many uniform rows.",
        paper="Tramèr et al., USENIX Security 2016, section 4.1.4; Fredrikson et al., CCS 2015",
        config=ApiInversionSettings,
        arms=arms,
        measure=measure,
        time="not measured",
        datasets=("tables",),
        presets={"tables": {}},
        views=(INVERSION_TABLE,),
    )
)
