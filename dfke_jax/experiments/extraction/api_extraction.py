"""Models of tables behind prediction APIs: every attack on every table, with its price and its control."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.data import TABLES, load_table
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.extraction.api_views import THEFT_TABLE
from dfke_jax.experiments.extraction.thefts import THEFTS, VICTIMS, Sizes, stolen, trained
from dfke_jax.nn.precision import Precision

_SMALL = (
    "circles", "moons", "blobs", "five_class", "iris", "wine", "breast_cancer", "digits", "german_credit",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ApiExtractionSettings:
    """Settings of api-extraction."""

    stand_in: ClassVar[str] = "digits"
    source: ClassVar[str] = "the tables of dfke_jax.data.load_table"

    dataset: str = "tables"
    """A name for the tables: tables or adult, of which each has its own."""
    seeds: int = 3
    """How many seeds; each has its own split of every table, its own victims and questions."""
    seed: int = 0
    """The first seed."""
    precision: Precision = "float32"
    """Read by the workbench alone: victims and attacks compute in float64."""
    tables: tuple[str, ...] = _SMALL
    """Which tables; see `dfke_jax.data.load_table`."""
    attacks: tuple[str, ...] = tuple(THEFTS)
    """Which attacks, on those of the tables that they suit."""
    hidden: int = 20
    """Units of victims with a hidden layer."""
    bins: int = 10
    """Quantile bins of victims that hide them."""
    label_rows: int = 20
    """Labels of retraining, a feature and one, of binary victims."""
    label_unknown_rows: int = 20
    """Labels of retraining, an unknown, of victims of several classes; 2,000 in all at most."""
    iterations: int = 1000
    """Of the search for a network, at most."""
    uniform_rows: int = 10_000
    """Uniform rows on which copies are compared with their victims."""
    price: float = 0.1
    """Dollars a thousand rows; as Amazon's and Google's services charged."""

    def __post_init__(self):
        for name in self.tables:
            if name not in TABLES:
                raise UnknownNameError("table", name, TABLES)
        for name in self.attacks:
            if name not in THEFTS:
                raise UnknownNameError("attack", name, THEFTS)
        sizes = (self.seeds, self.hidden, self.label_rows, self.label_unknown_rows, self.iterations)
        if min(*sizes, self.uniform_rows) < 1 or self.bins < 2 or self.price < 0:
            raise InputError("sizes must be at least 1, bins at least 2, and the price no less than 0")
        if not self.tables or not _pairs(self):
            raise InputError(f"none of {', '.join(self.attacks)} suits any of {', '.join(self.tables)}")

    @property
    def sizes(self) -> Sizes:
        """What thefts take from these."""
        return Sizes(self.hidden, self.bins, self.label_rows, self.label_unknown_rows, self.iterations)


def _pairs(config: ApiExtractionSettings) -> list[tuple[str, str]]:
    """(table, attack) of every theft, table by table."""
    return [(table, name) for table in config.tables for name in config.attacks if table in THEFTS[name].tables]


def _kinds(config: ApiExtractionSettings, table: str) -> list[str]:
    return list(dict.fromkeys(THEFTS[name].victim for of, name in _pairs(config) if of == table))


def arms(config: ApiExtractionSettings) -> list[Arm]:
    """Of every table its victims, another one trained like the first, and every theft with its control."""
    found = []
    for table in config.tables:
        kinds = _kinds(config, table)
        for kind in kinds:
            found.append(Arm(f"{table}_victim_{kind}", f"Victim on {table}: {VICTIMS[kind][0]}", "teacher"))
        if kinds:
            found.append(Arm(f"{table}_independent", f"Another such model on {table}", "anchor"))
    for table, name in _pairs(config):
        label = f"{THEFTS[name].label}, {table}"
        factors = {"attack": THEFTS[name].label, "table": table}
        found.append(Arm(f"{table}_{name}", label, "method", factors=factors))
        found.append(Arm(f"{table}_{name}_control", f"{label}: uniform rows", "control", factors=factors))
    return found


def measure(run: Run[ApiExtractionSettings]) -> None:
    """One seed: every table is split, its victims trained, and each stolen in every way that suits it."""
    config = run.config
    for name in config.tables:
        if kinds := _kinds(config, name):
            _measure_table(run, name, kinds)


def _measure_table(run: Run[ApiExtractionSettings], name: str, kinds: list[str]) -> None:
    config, sizes = run.config, run.config.sizes
    table = load_table(name, jax.random.key(run.seed), data_dir=run.bench.data_dir)
    uniform = table.schema.uniform(np.random.default_rng([run.seed, 2]), config.uniform_rows)
    budget = {"real_samples": len(table.train_rows)}
    share = lambda labels, others: round(100 * float(np.mean(labels == others)), 4)
    victims: dict[str, Any] = {}
    with run.clock("anchors"):
        for kind in kinds:
            victims[kind] = trained(kind, table, sizes)
            labels = victims[kind].predict(table.test_rows)
            run.enter(f"{name}_victim_{kind}", accuracy=share(labels, table.test_targets), budget=budget)
        other = trained(kinds[0], table, sizes, np.random.default_rng([run.seed, 3]))
    labels, first = other.predict(table.test_rows), victims[kinds[0]].predict(table.test_rows)
    off = 100 * float((other.predict(uniform) != victims[kinds[0]].predict(uniform)).mean())
    figures = {"off_test": 100 - share(labels, first), "off_uniform": off}
    right, alike = share(labels, table.test_targets), share(labels, first)
    run.enter(f"{name}_independent", figures, accuracy=right, agreement=alike, budget=budget)
    for of, attack in _pairs(config):
        if of != name:
            continue
        theft = THEFTS[attack]
        make = lambda theft=theft: stolen(theft, victims[theft.victim], table, sizes, run.seed, config.price, uniform)
        with run.clock("extraction"):
            made = run.once(f"{name}_{attack}", make)
        rows = int(made["copy"]["metrics"]["queries"])
        for arm, part in (("", "copy"), ("_control", "control")):
            figures = made[part]
            run.enter(
                f"{name}_{attack}{arm}",
                figures["metrics"],
                accuracy=figures["accuracy"],
                agreement=figures["agreement"],
                budget={"victim_rows": rows},
            )
        if made["failed"]:
            run.note(f"{theft.label} on {name}, seed {run.seed}, ended in an error: {made['failed']}")


RECIPE = register(
    Recipe(
        name="api-extraction",
        title="Models of tables behind prediction APIs",
        summary="Linear models by equations, networks by cross-entropy, trees leaf by leaf, models on hidden "
        "bins, and all of them from labels, on every table that they suit. The control of each is a model of "
        "the victim's kind fitted to the labels of as many uniform rows.",
        paper="Tramèr et al., Stealing Machine Learning Models via Prediction APIs, USENIX Security 2016; "
        "Lowd and Meek, Adversarial Learning, KDD 2005; Chandrasekaran et al., USENIX Security 2020",
        config=ApiExtractionSettings,
        arms=arms,
        measure=measure,
        time="not measured",
        datasets=("tables", "adult"),
        presets={
            "adult": {
                "tables": ("adult_income", "adult_race"),
                "attacks": tuple(name for name in THEFTS if name not in ("confidence", "line_search")),
            },
        },
        views=(THEFT_TABLE,),
    )
)
