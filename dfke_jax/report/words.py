"""The numbers of a result in plain words. Every other view of a result takes its wording from here."""

from typing import NamedTuple

from dfke_jax.display.numbers import decimal, mean_sd, signed, spread
from dfke_jax.experiments.bench.result import Arm, Published, Result
from dfke_jax.experiments.bench.rivals import compared, gains
from dfke_jax.experiments.bench.timing import CACHED
from dfke_jax.report.views import views_of

BALANCED = "balanced_accuracy"
"""The metric that stands beside accuracy where classes are unequal."""
TOLERANCE = 0.5
RULE = (
    f"A published figure counts as reproduced only if our mean is at most {TOLERANCE} points below it, "
    "and above that of the matched control where there is one."
)
PROVENANCE = {
    "code": "the authors' repository",
    "readme": "the text of the authors' repository",
    "table": "another paper's table",
    "slides": "the slides of a lecture or tutorial",
    "recalled": "recalled from the paper, to be confirmed",
}


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 1:
        return f"{seconds:.2f} s"
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def total_seconds(result: Result) -> float:
    """How long the run took: what it calls its total, else the sum of its parts."""
    return result.seconds.get("total", sum(result.seconds.values()))


def taken(result: Result) -> str:
    """How long the run took, in words; with ``≥`` where networks from the cache and earlier parts may be missing."""
    return ("" if CACHED in result.seconds else "≥ ") + duration(total_seconds(result))


class Comparison(NamedTuple):
    """A published figure beside the measured one.

    Attributes:
      figure: what was published.
      arm: what we measured.
      difference: our mean minus the figure, in points.
      reproduced: whether the rule is met; never of a figure whose setting differs (`Published.differs`).
      words: ``reproduced within 0.5 points (0.31 below)`` and the like; where the matched control
        comes as near to the figure too, they give its mean, and where it is as high as the arm
        itself, they say that the figure is not the method's.
    """

    figure: Published
    arm: Arm
    difference: float
    reproduced: bool
    words: str


def comparisons(result: Result) -> list[Comparison]:
    """Every published figure for this data set whose arm was measured."""
    arms = {arm.name: arm for arm in result.arms}
    controls = {method.name: control for method, control in result.pairs()}
    found = []
    for figure in result.published_here:
        arm = arms.get(figure.arm)
        if arm is None or not arm.accuracy:
            continue
        mean = mean_sd(arm.accuracy)[0]
        difference = mean - figure.value
        control = controls.get(arm.name)
        above = gains(arm, control) if control is not None else []
        gain = mean_sd(above)[0] if above else None
        near = difference >= -TOLERANCE - 1e-9
        reproduced = near and (gain is None or gain > 0)
        side = f"{abs(difference):.2f} {'below' if difference < 0 else 'above'}"
        if gain is not None and difference - gain >= -TOLERANCE - 1e-9:  # so does the control
            side += f"{'; ' if reproduced else ', but '}its control has {decimal(mean - gain)}"
        if figure.differs:
            reproduced, words = False, f"not judged ({side}): {figure.differs}"
        elif near and not reproduced:
            words = f"not the method's ({side})"
        elif not reproduced:
            words = f"not reproduced ({side})"
        elif difference < 0:
            words = f"reproduced within {TOLERANCE} points ({side})"
        elif difference <= TOLERANCE:
            words = f"reproduced ({side})"
        else:
            words = f"exceeded ({side})"
        found.append(Comparison(figure, arm, difference, reproduced, words))
    return found


def verdict(result: Result) -> list[str]:
    """One sentence per method arm: accuracy, gain over the best of what needs no more, the teacher, the
    published figure.

    Where a view of the recipe has sentences of its own, those.
    """
    views = views_of(result)
    if found := [sentence for view in views if view.sentences for sentence in view.sentences(result)]:
        return found
    about_accuracy = not any(view.subject for view in views)
    beside = comparisons(result)
    teachers = [arm for arm in result.arms if arm.role == "teacher" and arm.accuracy]
    methods = [arm for arm in result.arms if arm.role == "method" and arm.accuracy]
    subjects = methods or [arm for arm in result.arms if arm.role != "teacher" and arm.accuracy]
    if not subjects:
        subjects, teachers = teachers, []
    sentences = []
    for arm in subjects:
        count = len(arm.accuracy)
        balanced = arm.metrics.get(BALANCED)
        beside_it = f" (balanced over classes {spread(balanced)} %)" if balanced else ""
        parts = [f"{arm.label} reached {spread(arm.accuracy)} %{beside_it} on {result.dataset} over {_seeds(count)}"]
        parts += compared(result, arm, claims=about_accuracy) if arm.role == "method" else []
        parts += [f"{other.label} has {spread(other.accuracy)} %" for other in teachers]
        figures = [c for c in beside if c.arm is arm]
        for comparison in figures:
            kind = ", recalled" if comparison.figure.provenance == "recalled" else ""
            parts.append(f"published is {comparison.figure.value:g} %{kind}: {comparison.words}")
        if not figures and arm.role == "method":
            parts.append("there is no published figure for this data set")
        sentences.append("; ".join(parts) + ".")
    return sentences or _agreements(result) or ["No accuracy was recorded."]


def _agreements(result: Result) -> list[str]:
    """One sentence per method arm of a result without accuracy: agreement, and that above its control's."""
    controls, sentences = {method.name: control for method, control in result.pairs()}, []
    for arm in result.arms:
        if arm.role == "method" and arm.agreement:
            parts = [
                f"{arm.label} agrees with the teacher on {spread(arm.agreement)} % of the test images of {result.dataset} "
                f"over {_seeds(len(arm.agreement))}"
            ]
            if arm.name in controls and controls[arm.name].agreement:
                above = [a - b for a, b in zip(arm.agreement, controls[arm.name].agreement, strict=False)]
                parts.append(f"{signed(mean_sd(above)[0])} points over its matched control")
            sentences.append("; ".join([*parts, "accuracy was not measured"]) + ".")
    return sentences


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


__all__ = [
    "BALANCED",
    "PROVENANCE",
    "RULE",
    "TOLERANCE",
    "Comparison",
    "comparisons",
    "duration",
    "gains",
    "taken",
    "total_seconds",
    "verdict",
]
