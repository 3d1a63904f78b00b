"""What is entered of a verdict: figures, p-values and the curve over revealed samples, and their medians over models."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.dataset_inference import Judgement
from dfke_jax.experiments.bench.result import Series, Trial
from dfke_jax.experiments.bench.seed_run import Run


class Finding(NamedTuple):
    """What was found of one model.

    Attributes:
      metrics: figures by name. p_values: by test. curve: samples revealed -> Welch p-value.
    """

    metrics: dict[str, float]
    p_values: dict[str, float]
    curve: dict[float, float]


def finding(verdict: Judgement, metrics: Mapping[str, float], p_values: Mapping[str, float] | None = None) -> Finding:
    """Of a verdict, with figures and p-values of one's own besides."""
    figures = {"effect": verdict.test.effect, **metrics, "stolen": 100.0 * verdict.stolen, "queries": verdict.queries}
    curve = zip(verdict.curve.samples.tolist(), verdict.curve.median, strict=True)
    return Finding(
        {name: float(value) for name, value in figures.items()},
        {test: float(p) for test, p in (verdict.p_values | dict(p_values or {})).items()},
        {float(samples): float(p) for samples, p in curve},
    )


def median_of(found: Sequence[Finding], **shares: float) -> Finding:
    """The medians over models; what is no median is given."""
    middle = lambda tables: {name: float(np.median([table[name] for table in tables])) for name in tables[0]}
    metrics, p_values, curves = (middle(tables) for tables in zip(*found, strict=True))
    return Finding(metrics | shares, p_values, curves)


def enter(
    run: Run[Any],
    arm: str,
    found: Finding,
    *,
    series: Sequence[Series] = (),
    false_positives: Mapping[str, float] | None = None,
    **options: Any,
) -> None:
    """Enters it into an arm; p-values keep all their digits.

    Args:
      run, arm: where. found: what. series: further ones.
      false_positives: test -> per cent of innocent models that it accuses. options: see `Run.enter`.
    """
    rates = false_positives or {}
    trials = [
        Trial(
            test,
            [found.p_values[test]] if test in found.p_values else [],
            [float(rates[test])] if test in rates else [],
        )
        for test in dict.fromkeys([*found.p_values, *rates])
    ]
    curve = Series.of_seed("welch", "revealed", found.curve)
    run.enter(arm, found.metrics, series=[curve, *series], trials=trials, **options)


__all__ = ["Finding", "enter", "finding", "median_of"]
