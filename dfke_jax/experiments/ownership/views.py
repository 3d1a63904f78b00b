"""What results of dataset inference look like: p-values, which are neither averaged nor rounded to nothing."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.display.drawing import COLOURS, GRID, INK, MARKS, MUTED, SEEDS, new_figure, short, tidy
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Arm, Result, Series
from dfke_jax.experiments.bench.views import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = ("model", "accuracy %", "effect", "Welch p", "permutation p", "conformal p", "found stolen", "queries")
_NARROW = ("model", "acc. %", "effect", "Welch p", "perm. p", "conf. p", "stolen", "queries")
ABOUT = (
    "Effect: mean score of public minus private samples, regressor's range −1 to 1; of encoders, log-likelihood of private minus "
    "public samples in nats a dimension. p-values: median over seeds. Found stolen: seeds (of independent models: models, each "
    "held against the others) on which the rule accused. Queries: labels, asked step by step (of encoders: representations), that "
    "the test needs of one suspect. Accuracy of an encoder is a linear probe's."
)


class Threat(NamedTuple):
    """One row of the table.

    Attributes:
      arm: whose it is.
      accuracy: mean over seeds, or None.
      effect: median over seeds, like all p-values (by name).
      stolen: (accused, of how many seeds), or the share of independent models in per cent.
      queries: of the test, median.
    """

    arm: Arm
    accuracy: float | None
    effect: float
    p_values: dict[str, float]
    stolen: str
    queries: int

    @property
    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `HEAD`, without the model's name."""
        return (
            "–" if self.accuracy is None else f"{self.accuracy:.2f}",
            f"{self.effect:+.3f}".replace("-", "−"),
            *(p_text(self.p_values.get(name)) for name in ("welch", "permutation", "conformal")),
            self.stolen,
            f"{self.queries:,}",
        )


def threats(result: Result) -> list[Threat]:
    """The arms that were put to the test; none for other recipes."""
    rows = []
    for arm in result.arms:
        if not arm.trials:
            continue
        found = arm.metrics["stolen"]
        stolen = (
            f"{statistics.mean(found):.1f} %"
            if arm.role == "control"
            else f"{sum(v > 0 for v in found)} of {len(found)}"
        )
        p_values = {test: statistics.median(values) for test, values in arm.p_values.items()}
        accuracy = statistics.mean(arm.accuracy) if arm.accuracy else None
        effect, queries = (statistics.median(arm.metrics[name]) for name in ("effect", "queries"))
        rows.append(Threat(arm, accuracy, effect, p_values, stolen, round(queries)))
    return rows


def p_curves(result: Result) -> dict[str, tuple[list[int], list[float]]]:
    """By arm: samples revealed, and the p-value of a test with so many (median over choices, then over seeds)."""
    curves = {arm.name: arm.over("revealed", "welch") for arm in result.arms}
    return {name: _medians(series) for name, series in curves.items() if series and len(series.x) > 1}


def limits(result: Result, over: str) -> dict[str, tuple[list[int], list[float]]]:
    """By arm: per cent of ``overlap`` or steps of ``forgetting`` at which it was tested, and the Welch p-value there."""
    curves = {arm.name: arm.over(over, "welch") for arm in result.arms}
    return {name: _medians(series) for name, series in curves.items() if series}


def _medians(series: Series) -> tuple[list[int], list[float]]:
    return [int(x) for x in series.x], [statistics.median(series.at(x)) for x in series.x]


def alpha(result: Result) -> float:
    """The level of the test."""
    return float(result.config.get("inference", {}).get("alpha", 0.05))


def p_text(value: float | None) -> str:
    """``0.043``, ``1.2e-08``, or a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def sentences(result: Result) -> list[str]:
    """What was found, arm by arm; nothing for other recipes."""
    said = []
    for row in threats(result):
        arm, p = row.arm, row.p_values
        if arm.role == "control":
            rates = {test: statistics.mean(arm.false_positives[test]) for test in _RULES if test in arm.false_positives}
            listed = ", ".join(f"{_RULES[name]} {rate:.1f} %" for name, rate in rates.items())
            said.append(f"{arm.label} on {result.dataset} at {alpha(result):g}: accused wrongly by {listed}.")
        elif overlap := _limit_words(arm):
            said += overlap
        else:
            conformal = f", conformal p = {p_text(p['conformal'])}" if "conformal" in p else ""
            said.append(
                f"{arm.label}: found stolen on {row.stolen} seeds (effect {row.cells[1]}, Welch p = {p_text(p['welch'])}"
                f"{conformal}{_either(arm)}, {row.queries:,} queries)."
            )
    return said


def _either(arm: Arm) -> str:
    if "stolen_either" not in arm.metrics:
        return ""
    found = arm.metrics["stolen_either"]
    p = {test: p_text(statistics.median(arm.p_values[f"{test}_either"])) for test in ("welch", "conformal")}
    return (
        f"; in either direction Welch p = {p['welch']}, conformal p = {p['conformal']}, found on "
        f"{sum(v > 0 for v in found)} of {len(found)} seeds"
    )


_RULES = {
    "welch": "the Welch test",
    "conformal": "the conformal rule",
    "released": "the released layout",
    "welch_either": "the Welch test in either direction",
    "conformal_either": "the conformal rule in either direction",
}
_WORDS = {"overlap": ("at an overlap of", " %"), "forgetting": ("after", " steps")}


def _limit_words(arm: Arm) -> list[str]:
    said = []
    for over, (before, unit) in _WORDS.items():
        if series := arm.over(over, "welch"):
            listed = ", ".join(
                f"{p_text(value)} {before} {point}{unit}" for point, value in zip(*_medians(series), strict=True)
            )
            said.append(f"{arm.label}: Welch p = {listed}.")
    return said


def threat_table(result: Result) -> Table:
    """A row per model that was put to the test, and what the columns are."""
    rows = threats(result)
    cells = [(row.arm.label, *row.cells) for row in rows]
    return Table(HEAD, cells, notes=(ABOUT,), roles=[row.arm.role for row in rows], narrow=_NARROW)


SMALLEST = 1e-30


def p_value_curves(result: Result) -> "Figure":
    """Dataset inference: p-value against revealed samples, one line a model, both axes logarithmic.

    p-values below 1e-30 are drawn there.
    """
    found = p_curves(result)
    if not found:
        raise InputError("there are no p-values against revealed samples to draw")
    figure = new_figure((7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _p_lines(axes, result, found)
    axes.set_xscale("log")
    axes.set_xlabel("private samples revealed, and as many public ones", fontsize=8, color=MUTED)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7.5, labelcolor=INK)
    return figure


def p_value_limits(result: Result) -> "Figure":
    """Dataset inference: p-value against the overlap of public samples, and against fine-tuning on a new task."""
    panels = [
        (limits(result, "overlap"), "% of public samples that the victim was trained on"),
        (limits(result, "forgetting"), "steps of fine-tuning on a new task"),
    ]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        raise InputError("there are no limits to draw")
    figure = new_figure((3.9 * len(panels), 3.6), layout="constrained")
    for axes, (found, label) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        _p_lines(axes, result, found)
        if max(points[-1] for points, _ in found.values()) > 1000:
            axes.set_xscale("symlog", linthresh=100)
        axes.set_xlabel(label, fontsize=8, color=MUTED)
        axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    return figure


def _p_lines(axes, result: Result, found: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    by_name = {arm.name: arm for arm in result.arms}
    methods = [name for name in found if by_name[name].role == "method"]
    for name, (points, values) in found.items():
        arm = by_name[name]
        place = methods.index(name) if name in methods else 0
        colour = COLOURS[arm.role] if name not in methods else SEEDS[place % len(SEEDS)]
        axes.plot(
            points,
            np.maximum(values, SMALLEST),
            label=short(arm.label, 40),
            color=colour,
            linewidth=2.2 if name not in methods else 1.2,
            linestyle="--" if arm.role == "control" else "-",
            marker=None if name not in methods else MARKS[place % len(MARKS)],
            markersize=3.5,
        )
    level = alpha(result)
    axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        f"alpha {level:g}", (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        ha="right", fontsize=7.5, color=INK,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylabel("Welch p-value, median", fontsize=8, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    tidy(axes)


THREATS = View(
    "threats",
    "Threat models",
    holds=lambda result: bool(threats(result)),
    table=threat_table,
    sentences=sentences,
)
P_VALUES = View(
    "p-values",
    "p-value against revealed samples",
    holds=lambda result: bool(p_curves(result)),
    figure=p_value_curves,
    caption="Median over random choices of the samples, and over seeds.",
)
LIMITS = View(
    "limits",
    "The two limits",
    holds=lambda result: any(limits(result, over) for over in ("overlap", "forgetting")),
    figure=p_value_limits,
    caption="Median over seeds.",
)

__all__ = [
    "ABOUT",
    "HEAD",
    "LIMITS",
    "P_VALUES",
    "THREATS",
    "Threat",
    "alpha",
    "limits",
    "p_curves",
    "p_text",
    "p_value_curves",
    "p_value_limits",
    "sentences",
    "threat_table",
    "threats",
]
