"""Two files of measurements, side by side."""

import json
from typing import NamedTuple

import numpy as np

from benchmarks.harness import Json

REFERENCE = "pytorch"


class Interval(NamedTuple):
    """A ratio of medians B/A with its 95 % bootstrap interval."""

    ratio: float
    low: float
    high: float


class Comparison(NamedTuple):
    """One contender in both files.

    Attributes:
      a, b: median rates.
      change: of the rate.
      corrected: of the rate relative to the reference contender of the same blocks, which cancels what made the whole
        machine faster or slower between the two runs. None where either file lacks the reference.
      executed, memory: B/A of the executed arithmetic and of the memory; exact, free of noise. None where unknown.
    """

    name: str
    contender: str
    unit: str
    a: float
    b: float
    change: Interval
    corrected: Interval | None
    executed: float | None
    memory: float | None


def compare(a: list[Json], b: list[Json]) -> list[Comparison]:
    """Every measurement that both lists have, of the same row, contender and parameters.

    Repeated measurements in one list are pooled.
    """
    pooled_a, pooled_b = _pool(a), _pool(b)
    found = []
    for key, (record, blocks) in pooled_b.items():
        if key not in pooled_a:
            continue
        before, blocks_before = pooled_a[key]
        reference = (key[0], REFERENCE, key[2])
        corrected = None
        if key != reference and reference in pooled_a and reference in pooled_b:
            old, new = pooled_a[reference][1], pooled_b[reference][1]
            if len(old) == len(blocks_before) and len(new) == len(blocks):
                corrected = interval(blocks_before / old, blocks / new)
        found.append(
            Comparison(
                key[0],
                key[1],
                record["unit"],
                float(np.median(blocks_before)),
                float(np.median(blocks)),
                interval(blocks_before, blocks),
                corrected,
                _ratio(before["flops"]["executed_per_unit"], record["flops"]["executed_per_unit"]),
                _ratio((before["memory"] or {}).get("total"), (record["memory"] or {}).get("total")),
            )
        )
    return found


def interval(a: np.ndarray, b: np.ndarray, draws: int = 4000) -> Interval:
    """median(b) / median(a) with a percentile bootstrap over both, the same one every time."""
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(values, (draws, len(values))), axis=1) for values in (a, b)]
    low, high = np.quantile(medians[1] / medians[0], (0.025, 0.975))
    return Interval(float(np.median(b) / np.median(a)), float(low), float(high))


def _pool(records: list[Json]) -> dict[tuple[str, str, str], tuple[Json, np.ndarray]]:
    pooled: dict[tuple[str, str, str], tuple[Json, np.ndarray]] = {}
    for record in records:
        if "skipped" in record:
            continue
        key = (record["name"], record["contender"], json.dumps(record["params"], sort_keys=True))
        blocks = np.asarray(record["blocks"], np.float64)
        if key in pooled:
            blocks = np.concatenate([pooled[key][1], blocks])
        pooled[key] = (record, blocks)
    return pooled


def _ratio(a: float | None, b: float | None) -> float | None:
    return b / a if a and b else None
