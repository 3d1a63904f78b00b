"""Distillation from activation records (metadata kept with the network)."""

import dataclasses
import functools

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.distillation.activation_records import Record, RecordSettings, from_records, record_activations
from dfke_jax.experiments.bench.budgets import recorded_rows
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, PoolSettings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation.anchors import REAL_DATA
from dfke_jax.experiments.distillation.syntheses import SynthesisRecipe, measure_syntheses, synthesis_arms
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE

SPECTRAL = (
    "their spectral objective: the released code computes the one of all layers under that name, and its statistics of "
    "graphs stop at an undefined variable"
)
"""Why nobody can reproduce the best figure of the paper from its code."""


@dataclasses.dataclass(frozen=True)
class ActivationRecordSettings(PoolSettings):
    """Settings of activation records."""

    per_class: int = 1000
    """Most real images per class from which the records are made."""
    synthesis: RecordSettings = RecordSettings(steps=200)
    """How images are made; `layers` is set by the two arms, top layer and all layers."""


def prepare(bench: Workbench) -> None:
    """Refuses batches that do not hold every class equally often."""
    batch, classes = bench.config.synthesis_batch, bench.dataset.num_classes  # type: ignore[attr-defined]
    if batch % classes:
        raise InputError(f"synthesis_batch must be a multiple of the {classes} classes, got {batch}")


def methods(config: ActivationRecordSettings) -> list[SynthesisRecipe]:
    """Records of the top layer and of all layers, which start from the same images and share a control."""
    return [
        _method(config, "top", "top_layer", "Activation records, top layer", "control"),
        _method(config, "all", "all_layers", "Activation records, all layers", None),
    ]


def _method(
    config: ActivationRecordSettings, layers: str, name: str, label: str, control: str | None
) -> SynthesisRecipe:
    settings = dataclasses.replace(config.synthesis, layers=layers)

    @functools.cache  # one for the method and its control
    def records(run: Run) -> Record:
        train = run.dataset.train
        with run.clock("records"):
            return record_activations(run.teacher, train.images, train.labels, per_class=config.per_class)

    def used(run: Run) -> dict[str, int]:
        counts = np.bincount(run.dataset.train.labels, minlength=run.dataset.num_classes)
        return {"recorded": recorded_rows(counts.tolist(), config.per_class)}

    def make(run: Run, control: bool) -> Method:
        size = config.samples, config.synthesis_batch
        return from_records(run.teacher, records(run), settings, *size, control=control)

    return SynthesisRecipe(name, label, make, settings.steps, control=control, draws_as="records", used=used)


def measure(run: Run[ActivationRecordSettings]) -> None:
    """Anchors, noise, the matched control, records of the top layer and of all layers."""
    measure_syntheses(run, methods(run.config))
    run.note(
        "Activation records are statistics of real data that are kept with the network: not data-free in the strict sense."
    )


register(
    Recipe(
        name="activation-records",
        title="Activation records",
        summary="Images whose layer responses follow per-class Gaussians recorded from the training data, on the top layer or "
        "on all layers, drawn with a correct Cholesky factor.",
        paper="Lopes, Fenu, Starner: Data-Free Knowledge Distillation for Deep Neural Networks, 2017",
        config=ActivationRecordSettings,
        arms=lambda config: synthesis_arms(config, methods(config)),
        measure=measure,
        labels=True,
        views=(SIDE_BY_SIDE,),
        prepare=prepare,
        published=(
            Published("top_layer", "mnist", 77.30, "Lopes et al. 2017", "recalled"),
            Published("all_layers", "mnist", 85.61, "Lopes et al. 2017", "recalled"),
            Published("all_layers", "mnist", 92.47, "Lopes et al. 2017, spectral", "slides", differs=SPECTRAL),
            *REAL_DATA,
        ),
        time="17 min on one of two shared CPU cores (mnist, 3 seeds)",
        presets={"digits": {**DISTILLED_DIGITS, "samples": 1000}},
    )
)

__all__ = ["ActivationRecordSettings"]
