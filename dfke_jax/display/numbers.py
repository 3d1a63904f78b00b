"""Numbers in words, as every view of a result writes them."""

from collections.abc import Sequence

from dfke_jax.evaluation.summary import summarise


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter is None for fewer than two values.

    >>> mean_sd([90.0, 92.0])[0]
    91.0
    """
    summary = summarise(values)
    return summary["mean"], summary["std"]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``93.10 ± 0.42``, without the spread for one value, a dash for none."""
    if not values:
        return "–"
    mean, sd = mean_sd(values)
    return decimal(mean, digits) if sd is None else f"{decimal(mean, digits)} ± {sd:.{digits}f}"


def decimal(value: float, digits: int = 2) -> str:
    """``1.20`` or ``−0.30``."""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign: ``+1.20`` or ``−0.30``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def number(value: object) -> str:
    """Whole numbers with thousands separated by commas, anything else as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


__all__ = ["decimal", "mean_sd", "number", "signed", "spread"]
