"""What results of thefts through prediction APIs look like: a row an attack and a table."""

from typing import NamedTuple

from dfke_jax.display.numbers import decimal, mean_sd, spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.views import View


class PublishedTheft(NamedTuple):
    """Of Tramèr et al. 2016: what its paper says of an attack on a set.

    Attributes:
      queries: that it took. test, uniform: 1 − R in per cent; None where it is not said.
      seconds: on a laptop, or against the service. note: what differs.
    """

    queries: int
    test: float | None = None
    uniform: float | None = None
    seconds: float | None = None
    note: str = ""


PUBLISHED: dict[tuple[str, str], PublishedTheft] = {
    ("equations", "digits"): PublishedTheft(650, 100.0, 100.0, None, "K (D + 1) rows"),
    ("equations", "adult_race"): PublishedTheft(530, 100.0, 100.0, 3.1, "K (D + 1) rows"),
    ("one_versus_rest", "adult_race"): PublishedTheft(530, 99.98, 99.98, 3.5),
    ("hidden_layer", "adult_race"): PublishedTheft(11125, 99.96, 99.99, 89.0),
    ("paths", "german_credit"): PublishedTheft(1722, 100.0, 100.0, None, "another tree of 26 leaves"),
    ("top_down", "german_credit"): PublishedTheft(1150, 100.0, 100.0, None, "another tree of 26 leaves"),
    ("binned", "circles"): PublishedTheft(278, None, None, 28.0, "Amazon"),
    ("binned", "digits"): PublishedTheft(650, None, None, 70.0, "Amazon"),
    ("binned", "iris"): PublishedTheft(644, None, None, 68.0, "Amazon"),
    ("binned", "adult_income"): PublishedTheft(1485, None, None, 149.0, "Amazon"),
}
"""(attack, table) -> tables 4, 6 and 7 and section 4.1 of the paper, read in its text."""

_HEAD = (
    "table",
    "attack",
    "queries",
    "dollars",
    "seconds",
    "off test %",
    "off uniform %",
    "control: off test %",
    "control: off uniform %",
    "published: queries",
    "published: 1 − R_test / 1 − R_unif %",
)


def thefts(result: Result) -> list[tuple[Arm, Arm]]:
    """Every theft of a result and its control; none of other recipes."""
    return [
        (method, control)
        for method, control in result.pairs()
        if {"attack", "table"} <= method.factors.keys() and "off_uniform" in method.metrics
    ]


def theft_table(result: Result) -> Table:
    """A row per attack and table: what it took, where the copy is wrong, its control, and the published figure."""
    rows = []
    for method, control in thefts(result):
        table = str(method.factors["table"])
        known = PUBLISHED.get((method.name.removeprefix(f"{table}_"), table))
        of = method.metrics
        failed = sum(of["failed"])
        rows.append(
            (
                table,
                str(method.factors["attack"]) + (f" ({failed:g} of {len(of['failed'])} failed)" if failed else ""),
                _whole(of["queries"]),
                decimal(mean_sd(of["dollars"])[0], 4),
                decimal(mean_sd(of["seconds"])[0], 2),
                *(spread(of[name], 3) for name in ("off_test", "off_uniform")),
                *(spread(control.metrics[name], 2) for name in ("off_test", "off_uniform")),
                "–" if known is None else f"{known.queries:,}" + (f" ({known.note})" if known.note else ""),
                "–" if known is None or known.test is None else f"{known.test:g} / {known.uniform:g}",
            )
        )
    return Table(_HEAD, rows, left=(0, 1), notes=(_WORDS,))


def _whole(values: list[float]) -> str:
    mean, sd = mean_sd(values)
    return f"{mean:,.0f}" + (f" ± {sd:,.0f}" if sd else "")


_WORDS = (
    "Off: share of rows on which copy and victim answer another class, on held-out rows and on uniform ones; mean ± sd "
    "over seeds. Control: a model of the victim's kind, fitted to the victim's labels of as many uniform rows. Dollars at "
    "the price of the settings; seconds are those of attack and victim together, on a machine that others shared. "
    "Published: Tramèr et al. 2016, tables 4, 6 and 7."
)


THEFT_TABLE = View(
    "thefts",
    "Attack by attack, table by table",
    holds=lambda result: bool(thefts(result)),
    table=theft_table,
)


def _spent(arm: Arm) -> tuple[str, str, str]:
    """What an arm is, its queries and their price."""
    return arm.label, _whole(arm.metrics["queries"]), decimal(mean_sd(arm.metrics["dollars"])[0], 4)


def inversion_table(result: Result) -> Table:
    """A row per way to invert a model: what it took, and what victim and class mean say of the rows."""
    rows = [
        (
            *_spent(arm),
            spread(arm.accuracy, 1),
            spread(arm.metrics["confidence"], 1),
            spread(arm.metrics["correlation"], 2),
            spread(arm.agreement, 2),
        )
        for arm in result.arms
        if "correlation" in arm.metrics
    ]
    head = (
        "rows",
        "queries",
        "dollars",
        "of their class %",
        "victim's confidence %",
        "correlation",
        "model: fidelity %",
    )
    return Table(head, rows, notes=(_INVERTED,))


_INVERTED = (
    "Of their class: share of the inverted rows that the victim gives the class they were made for. Correlation: with "
    "the mean of the class's training rows, both less the mean of all. Fidelity: of the inverted model to the victim on "
    "held-out rows. Mean ± sd over seeds."
)


INVERSION_TABLE = View(
    "inversions",
    "What the victim says of inverted rows",
    holds=lambda result: any("correlation" in arm.metrics for arm in result.arms),
    table=inversion_table,
)


def representer_table(result: Result) -> Table:
    """A row per way to find the rows of a kernel model: what it took, and how like they are."""
    rows = [
        (
            *_spent(arm),
            spread(arm.metrics["row_correlation"], 3),
            spread(arm.metrics["recognised"], 1),
            f"{max(arm.metrics['largest_row_error']):.1e}",
            spread(arm.agreement, 2),
        )
        for arm in result.arms
        if "row_correlation" in arm.metrics
    ]
    head = ("rows", "queries", "dollars", "correlation", "recognised %", "largest error", "model: fidelity %")
    return Table(head, rows, notes=(_REPRESENTERS,))


_REPRESENTERS = (
    "Every training row in the model and its partner among those found, by the least sum of distances. Recognised: "
    "correlations above 0.8. Largest error: of a feature, whose range is 2, over all seeds. Mean ± sd over seeds. "
    "Published (Tramèr et al. 2016): a search over 50,000 questions for 20 digits, which can be told by eye."
)


REPRESENTER_TABLE = View(
    "representers",
    "Training rows given away",
    holds=lambda result: any("row_correlation" in arm.metrics for arm in result.arms),
    table=representer_table,
)


def api_defences_table(result: Result) -> Table:
    """A row per table and defence: what is deployed, and where the copy of each attack is wrong."""
    deployed = [arm for arm in result.arms if arm.role == "anchor" and "defence" in arm.factors]
    copies = {
        (arm.factors["table"], arm.factors["defence"], arm.factors["attack"]): arm
        for arm in result.arms
        if "off_uniform" in arm.metrics and "defence" in arm.factors
    }
    attacks = list(dict.fromkeys(attack for _, _, attack in copies))
    rows = []
    for arm in deployed:
        key = (arm.factors["table"], arm.factors["defence"])
        cells = [_errors(copies.get((*key, attack))) for attack in attacks]
        rows.append((*map(str, key), spread(arm.accuracy), spread(arm.agreement), *cells))
    head = ("table", "defence", "accuracy %", "as the plain victim %", *map(str, attacks))
    return Table(head, rows, left=(0, 1), notes=(_DEFENDED,))


def _errors(arm: Arm | None) -> str:
    """Off test / off uniform."""
    if arm is None:
        return "–"
    if any(arm.metrics["failed"]):
        return f"refused in {sum(arm.metrics['failed']):.0f} of {len(arm.accuracy)}"
    return " / ".join(spread(arm.metrics[name]) for name in ("off_test", "off_uniform"))


_DEFENDED = (
    "Cells: share of held-out / uniform rows, in %, on which the copy answers another class than what is deployed; mean "
    "± sd over seeds. Accuracy and agreement with the plain victim are those of what is deployed, on held-out rows."
)


API_DEFENCES = View(
    "api_defences",
    "Attacks behind defences",
    holds=lambda result: any({"table", "defence", "attack"} <= arm.factors.keys() for arm in result.arms),
    table=api_defences_table,
)

__all__ = [
    "API_DEFENCES",
    "INVERSION_TABLE",
    "PUBLISHED",
    "REPRESENTER_TABLE",
    "THEFT_TABLE",
    "PublishedTheft",
    "api_defences_table",
    "inversion_table",
    "representer_table",
    "theft_table",
    "thefts",
]
