"""The rows, by suite. A row is built only when it is measured."""

from benchmarks.harness import Rows
from benchmarks.suites import (
    dataset_inference,
    distillation,
    entangled,
    extraction,
    generators,
    inversion,
    noise,
    population,
    training,
    watermarking,
)

SUITES = ("smoke", "full", "gpu")


def rows(suite: str) -> Rows:
    """Name -> builder of every row of a suite, in the order in which they run."""
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, not {suite!r}")
    found: Rows = {}
    if suite == "gpu":  # sizes that fill an accelerator
        return noise.gpu_rows() | population.gpu_rows() | extraction.gpu_rows() | watermarking.gpu_rows()
    modules = (
        noise, training, population, distillation, inversion, generators, extraction, dataset_inference, watermarking,
        entangled,
    )  # fmt: skip
    for module in modules:
        found |= module.rows(suite)
    return found
