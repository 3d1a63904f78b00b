"""Dataset inference as an experiment: what its recipes share, from data and victim to distances and figures."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dfke_jax.core.mesh import replicate
from dfke_jax.dataset_inference import Verdict, prepare
from dfke_jax.dataset_inference.case import Case, Embedded, embed
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.supervision import supervised_training
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.ownership.findings import Finding, finding
from dfke_jax.experiments.ownership.settings import TheftSettings
from dfke_jax.experiments.ownership.thieves import Theft, cut
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained


def new_theft(run: Run[Any]) -> tuple[Theft, int]:
    """The seed's data and its victim, and how many repeated images were left out."""
    config: TheftSettings = run.config
    train = run.dataset.train
    sizes = config.private, config.samples, config.others
    parts, repeated = cut(train.images, train.labels, sizes, run.seed)
    network = run.network(config.teacher)
    method = supervised_training(config, network, *parts.private)
    state = run.stage("victim", "victim", method, config.teacher_steps, rows=config.teacher_batch)
    return Theft(run, parts, trained(network, state)), repeated


def _first(samples: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    return samples[0][:count], samples[1][:count]


def distances_of(theft: Theft, case: Case, name: str, model: Any) -> Embedded:
    """A model on the case's samples; a resumed run does not walk again.

    Args:
      theft, case: of the seed. name: of the model, one for each that is walked. model: the model.
    """
    bench = theft.run.bench

    def walk() -> dict[str, Any]:
        with bench.clock("inference"), _all_devices(bench):
            answers = _everywhere(bench, getattr(model, "answer", model))
            return embed(answers, case.samples, case.key, case.settings, case.box)._asdict()

    found = theft.run.once(f"distances/{name}", walk)
    return Embedded(**{**found, "distances": tuple(found["distances"]), "correct": tuple(found["correct"])})


def _all_devices(bench: Workbench) -> contextlib.AbstractContextManager:
    """Every device walks with a share of the samples."""
    return jax.set_mesh(bench.mesh) if bench.mesh else contextlib.nullcontext()


def _everywhere(bench: Workbench, model: Any) -> Any:
    return replicate(model, bench.mesh) if bench.mesh else model


def figures_of(verdict: Verdict) -> Finding:
    """What is entered of a verdict on a classifier."""
    low, high = verdict.test.interval
    counts = {name: getattr(verdict, name) for name in ("rows_sent", "gradients", "never", "saturated")}
    # scores lie in [−1, 1]
    return finding(verdict, {"effect_low": max(low, -2.0), "effect_high": min(high, 2.0), **counts})


def case_of(theft: Theft, references: Sequence[Classifier] = (), public: tuple | None = None) -> Case:
    """The owner's case: private and public samples, and models that the distances are calibrated by."""
    config, bench = theft.config, theft.run.bench
    with bench.clock("inference"), _all_devices(bench):
        return prepare(
            _first(theft.parts.private, config.samples),
            public or theft.parts.public,
            victim=_everywhere(bench, theft.victim),
            key=theft.run.key("walks"),
            references=[_everywhere(bench, model) for model in references],
            settings=config.inference,
        )


__all__ = ["case_of", "distances_of", "figures_of", "new_theft"]
