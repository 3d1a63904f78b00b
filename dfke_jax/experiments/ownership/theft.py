"""Dataset inference as an experiment: what its recipes share, from data and victim to distances and presets."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.mesh import replicate
from dfke_jax.dataset_inference import Verdict, prepare
from dfke_jax.dataset_inference.case import Case, Embedded, embed
from dfke_jax.distillation.response import cross_entropy_training
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.settings import augmentation
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.ownership.settings import TheftSettings
from dfke_jax.experiments.ownership.thieves import Theft, cut
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained


def new_theft(config: TheftSettings, bench: Workbench, seed: int) -> tuple[Theft, int]:
    """The seed's data and its victim, and how many repeated images were left out."""
    train = bench.dataset.train
    sizes = config.private, config.samples, config.others
    parts, repeated = cut(train.images, train.labels, sizes, seed)
    network = bench.network(config.teacher)
    images, labels = map(jnp.asarray, parts.private)
    method = cross_entropy_training(
        network,
        images,
        labels,
        steps=config.teacher_steps,
        batch_size=config.teacher_batch,
        learning_rate=config.teacher_learning_rate,
        augment=augmentation(config.teacher_augmentation),
    )
    state = bench.stage("victim", "victim", seed, method, config.teacher_steps, rows=config.teacher_batch)
    return Theft(bench, config, seed, parts, trained(network, state)), repeated


def _first(samples: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    return samples[0][:count], samples[1][:count]


def distances_of(bench: Workbench, case: Case, seed: int, name: str, model: Any) -> Embedded:
    """A model on the case's samples; kept in the run's directory, so that a resumed run does not walk again."""
    path = bench.out / "distances" / f"seed{seed}" / f"{name}.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["data"]) == bench.data_fingerprint:
                distances, correct = (
                    (stored[f"{what}_private"], stored[f"{what}_public"]) for what in ("distances", "correct")
                )
                queries, sent, gradients, never = stored["counts"].tolist()
                return Embedded(distances, correct, int(queries), int(sent), int(gradients), never)
    with bench.clock("inference"), _all_devices(bench):
        model = _everywhere(bench, getattr(model, "answer", model))
        found = embed(model, case.samples, case.key, case.settings, case.box)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{name}.tmp.npz")
    np.savez_compressed(
        temporary,
        data=bench.data_fingerprint,
        distances_private=found.distances[0],
        distances_public=found.distances[1],
        correct_private=found.correct[0],
        correct_public=found.correct[1],
        counts=np.array([found.queries, found.rows_sent, found.gradients, found.never]),
    )
    temporary.replace(path)
    return found


def _all_devices(bench: Workbench) -> contextlib.AbstractContextManager:
    """Every device walks with a share of the samples."""
    return jax.set_mesh(bench.mesh) if bench.mesh else contextlib.nullcontext()


def _everywhere(bench: Workbench, model: Any) -> Any:
    return replicate(model, bench.mesh) if bench.mesh else model


def enter(arm: Arm, figures: dict[str, float]) -> None:
    """Adds one seed's figures; p-values keep all their digits."""
    for name, value in figures.items():
        arm.metrics.setdefault(name, []).append(float(value))


def figures_of(verdict: Verdict) -> dict[str, float]:
    low, high = verdict.test.interval
    return {
        "effect": verdict.test.effect,
        "effect_low": max(low, -2.0),  # scores lie in [−1, 1]
        "effect_high": min(high, 2.0),
        **verdict.p_values,
        "stolen": 100.0 * verdict.stolen,
        "queries": verdict.queries,
        "rows_sent": verdict.rows_sent,
        "gradients": verdict.gradients,
        "never": verdict.never,
        "saturated": verdict.saturated,
        **{f"p_at_{m}": p for m, p in zip(verdict.curve.samples.tolist(), verdict.curve.median, strict=True)},
    }


def case_of(theft: Theft, references: Sequence[Classifier] = (), public: tuple | None = None) -> Case:
    config, bench = theft.config, theft.bench
    with bench.clock("inference"), _all_devices(bench):
        return prepare(
            _first(theft.parts.private, config.samples),
            public or theft.parts.public,
            victim=_everywhere(bench, theft.victim),
            key=bench.key(theft.seed, "walks"),
            references=[_everywhere(bench, model) for model in references],
            settings=config.inference,
        )


__all__ = ["case_of", "distances_of", "enter", "figures_of", "new_theft"]
