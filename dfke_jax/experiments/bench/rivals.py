"""What a method is measured by: the best of what needs no more than it does, in numbers and in words."""

from collections.abc import Sequence

from dfke_jax.display.numbers import mean_sd, signed, spread
from dfke_jax.experiments.bench.result import Arm, Result

_WORK = (
    "clone_updates", "distillation_steps", "networks", "steps", "synthesis_steps", "synthetic_samples", "training_steps",
)  # fmt: skip
"""Counts of a budget that are an arm's own work; all others are what it has to be given or to ask."""


def gains(method: Arm, control: Arm) -> list[float]:
    """Accuracy of a method above its control, seed by seed (as many seeds as both have)."""
    return [a - b for a, b in zip(method.accuracy, control.accuracy, strict=False)]


def rivals(result: Result, method: Arm) -> list[Arm]:
    """The method's matched control, and every baseline that needs no more than the method does.

    A baseline needs no more where no count of its budget is larger, besides those of work (steps, updates,
    synthetic images): rows that a model answers, real images, others' images. One that stands elsewhere among
    the arms (another mark, another defence: `Arm.factors`) is none. Arms without accuracy are left out.
    """
    found = [control for of, control in result.pairs() if of is method and control.accuracy]
    for arm in result.arms:
        if arm.role == "baseline" and arm.accuracy and _needs_no_more(arm, method):
            found.append(arm)
    return found


def _needs_no_more(arm: Arm, method: Arm) -> bool:
    known = [name for name in arm.factors if name in method.factors and name != "queries"]
    if any(arm.factors[name] != method.factors[name] for name in known):
        return False
    return all(count <= method.budget.get(name, 0) for name, count in arm.budget.items() if name not in _WORK)


def best_rival(result: Result, method: Arm) -> Arm | None:
    """The rival of the highest mean accuracy; of equal ones the first."""
    found = rivals(result, method)
    return max(found, key=lambda arm: mean_sd(arm.accuracy)[0]) if found else None


def compared(result: Result, method: Arm, *, claims: bool = True) -> list[str]:
    """A method against its best rival, and against its matched control where that is another, in words.

    ``no better than Uniform noise (93.21 ± 0.40 %): −0.06 points, ...`` where the mean gain is not above zero.

    Args:
      result, method: the arm and where it stands.
      claims: whether the method is there for its accuracy; a watermark, say, is not, and is not called
        better or no better.
    """
    rival = best_rival(result, method)
    if rival is None or not gains(method, rival):
        return []
    control = next((control for of, control in result.pairs() if of is method), None)
    title = "its matched control" if rival is control else f"{rival.label}, the best of what needs no more"
    differences = gains(method, rival)
    mean, has = mean_sd(differences)[0], f"({spread(rival.accuracy)} %)"
    if not claims:
        words = f"{signed(mean)} points against {title} {has}, {seed_by_seed(differences)}"
    elif round(mean, 2) <= 0:
        words = f"no better than {title} {has}: {signed(mean)} points, {seed_by_seed(differences)}"
    else:
        words = f"{signed(mean)} points over {title} {has}, {seed_by_seed(differences)}"
    more = gains(method, control) if control is not None and control is not rival else []
    return [words, f"{signed(mean_sd(more)[0])} over its matched control"] if more else [words]


def seed_by_seed(differences: Sequence[float]) -> str:
    """On how many seeds something is better, and by how much on each."""
    if len(differences) == 1:
        return "on a single seed"
    up, down = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    listed = ", ".join(signed(d) for d in differences)
    if len(differences) == up:
        sign = "better on every seed"
    elif len(differences) == down:
        sign = "worse on every seed"
    else:
        sign = f"better on {up} of {len(differences)} seeds"
    return f"{sign} ({listed})"


__all__ = ["best_rival", "compared", "gains", "rivals", "seed_by_seed"]
