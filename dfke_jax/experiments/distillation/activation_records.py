"""Distillation from activation records (metadata kept with the network)."""

import dataclasses

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.distillation.activation_records import RecordSettings, from_records, record_activations
from dfke_jax.experiments.bench.budgets import recorded_rows
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, PoolSettings
from dfke_jax.experiments.bench.workbench import Workbench, opening_arms, synthesis_arms
from dfke_jax.experiments.distillation.anchors import REAL_DATA


@dataclasses.dataclass(frozen=True)
class ActivationRecordSettings(PoolSettings):
    """Settings of activation records."""

    per_class: int = 1000
    """Most real images per class from which the records are made."""
    synthesis: RecordSettings = RecordSettings(steps=200)
    """How images are made; `layers` is set by the two arms, top layer and all layers."""


def execute(config: ActivationRecordSettings, bench: Workbench) -> list[Arm]:
    """Anchors, noise, the matched control, records of the top layer and of all layers."""
    classes = bench.dataset.num_classes
    if config.synthesis_batch % classes:
        raise InputError(f"synthesis_batch must be a multiple of the {classes} classes, got {config.synthesis_batch}")
    arms = opening_arms(config, bench)
    train = bench.dataset.train
    records = {}

    def record(teacher, seed):
        if seed not in records:
            with bench.clock("records"):
                records.clear()
                records[seed] = record_activations(teacher, train.images, train.labels, per_class=config.per_class)
        return records[seed]

    for layers, label in (("top", "Activation records, top layer"), ("all", "Activation records, all layers")):
        settings = dataclasses.replace(config.synthesis, layers=layers)

        def make(teacher, seed, control, settings=settings):
            return from_records(
                teacher, record(teacher, seed), settings, config.samples, config.synthesis_batch, control=control
            )

        arms += synthesis_arms(
            bench,
            f"{layers}_layer{'s' * (layers == 'all')}",
            label,
            make,
            config.samples,
            config.synthesis_batch,
            settings.steps,
            control="control" if layers == "top" else None,
            draws_as="records",
            recorded=recorded_rows(np.bincount(train.labels, minlength=classes).tolist(), config.per_class),
        )
    bench.notes.append(
        "Activation records are statistics of real data that are kept with the network: not data-free in the strict sense."
    )
    return arms


register(
    Recipe(
        name="activation-records",
        title="Activation records",
        summary="Images whose layer responses follow per-class Gaussians recorded from the training data, on the top layer or "
        "on all layers, drawn with a correct Cholesky factor.",
        paper="Lopes, Fenu, Starner: Data-Free Knowledge Distillation for Deep Neural Networks, 2017",
        config=ActivationRecordSettings,
        execute=execute,
        published=(
            Published("top_layer", "mnist", 77.30, "Lopes et al. 2017", "recalled"),
            Published("all_layers", "mnist", 85.61, "Lopes et al. 2017", "recalled"),
            *REAL_DATA,
        ),
        time="17 min on one of two shared CPU cores (mnist, 3 seeds)",
        presets={"digits": {**DISTILLED_DIGITS, "samples": 1000}},
    )
)

__all__ = ["ActivationRecordSettings"]
