"""The marks that removal attacks: how each is put into a network, and what it is held against."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import SupervisedSettings, augmentation
from dfke_jax.experiments.watermarks.entangled import ROTATED, EntangledRecipeSettings, marked_network, source_images
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.watermarking import EntangledSettings, entangled_watermark
from dfke_jax.watermarking.removal import abstract_triggers
from dfke_jax.watermarking.removal.common import LOSS
from dfke_jax.watermarking.triggers import TriggerSet


@dataclasses.dataclass(frozen=True)
class MarkSettings(SupervisedSettings):
    """How the schemes mark a network."""

    triggers: int = 100
    """Trigger images of a mark."""
    companions_per_batch: int = 2
    """Triggers beside every batch while a mark is embedded; 2 in the paper, whose training is many times as long."""
    mark_steps: int = 2000
    """Training steps of marking a network that is trained already."""
    mark_learning_rate: float = 1e-3
    """Adam's learning rate at the beginning of that."""
    entangled: EntangledSettings = EntangledRecipeSettings().watermark
    """How the schemes ``entangled`` and ``entangled_plain`` mark a trained network, whose layers it names."""
    unrelated: str = ROTATED
    """Data set of their triggers, as in the recipe ewe."""
    entangled_triggers: int = 512
    """How many of them, at most."""
    entangled_steps: int = 400
    """Watermark batches; the learning rate falls to zero along a cosine over them."""

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.companions_per_batch <= self.triggers:
            raise InputError(f"companions_per_batch must lie in 1 to {self.triggers}, got {self.companions_per_batch}")
        for name in ("mark_steps", "entangled_triggers", "entangled_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


class Scheme(NamedTuple):
    """A way to mark a network.

    Attributes:
      label: in tables.
      mark: of a run -> (marked network, its triggers).
      budget: ``config -> what marking takes``; with ``training_steps``.
      control: of a run -> a network trained like the marked one without triggers; None where that is the network without
        a mark.
    """

    label: str
    mark: Callable[[Run[Any]], tuple[Classifier, TriggerSet]]
    budget: Callable[[MarkSettings], dict[str, int]]
    control: Callable[[Run[Any]], Classifier] | None = None


def _triggers(run: Run[MarkSettings]) -> TriggerSet:
    return abstract_triggers(run.key("triggers"), run.network(run.config.teacher), run.config.triggers)


def _embedded(
    run: Run[MarkSettings],
    name: str,
    start: Classifier | None,
    steps: int,
    rate: float,
    triggers: TriggerSet | None,
    draws_as: str | None = None,
) -> Classifier:
    """A network that learns triggers, if there are any, beside every batch, from scratch or from `start`."""
    config, (images, labels) = run.config, run.bench.train
    network = start or run.network(config.teacher)
    method = training(
        network,
        images,
        labels,
        loss=LOSS,
        optimizer=optimiser("adam", rate, steps),
        batch_size=config.teacher_batch,
        augment=augmentation(config.teacher_augmentation),
        companions=(triggers.images, triggers.labels) if triggers else None,
        companions_per_batch=config.companions_per_batch,
        fine_tune=start is not None,
    )
    return trained(network, run.stage("marking", name, method, steps, rows=config.teacher_batch, draws_as=draws_as))


def _from_scratch(run: Run[MarkSettings]) -> tuple[Classifier, TriggerSet]:
    triggers, steps, rate = _triggers(run), run.config.teacher_steps, run.config.teacher_learning_rate
    return _embedded(run, "from_scratch/mark", None, steps, rate, triggers), triggers


def _pretrained(run: Run[MarkSettings]) -> tuple[Classifier, TriggerSet]:
    triggers, steps, rate = _triggers(run), run.config.mark_steps, run.config.mark_learning_rate
    return _embedded(run, "pretrained/mark", run.teacher, steps, rate, triggers), triggers


def _trained_further(run: Run[MarkSettings]) -> Classifier:
    steps, rate = run.config.mark_steps, run.config.mark_learning_rate
    return _embedded(run, "pretrained_control/mark", run.teacher, steps, rate, None, "pretrained/mark")


def _entangled(run: Run[MarkSettings], *, plain: bool) -> tuple[Classifier, TriggerSet]:
    config, start = run.config, run.teacher
    source = source_images(config.entangled, config.unrelated, run.bench)
    settings = dataclasses.replace(config.entangled, decay_steps=config.entangled_steps)
    with run.clock("synthesis"):
        mark = entangled_watermark(start, *run.bench.train, source, settings, config.entangled_triggers)
    name, settings = ("entangled_plain", settings.plain_backdoor()) if plain else ("entangled", settings)
    return marked_network(run, start, mark, settings, config.entangled_steps, name), mark.triggers


def _backdoor_budget(config: MarkSettings, *, afterwards: bool) -> dict[str, int]:
    steps = config.teacher_steps + (config.mark_steps if afterwards else 0)
    return {"triggers": config.triggers, "training_steps": steps}


def _entangled_budget(config: MarkSettings) -> dict[str, int]:
    batches = round(config.entangled_steps * (1 + config.entangled.ratio))
    return {"triggers": config.entangled_triggers, "training_steps": config.teacher_steps + batches}


SCHEMES: dict[str, Scheme] = {
    "from_scratch": Scheme(
        "Backdoor from scratch", _from_scratch, functools.partial(_backdoor_budget, afterwards=False)
    ),
    "pretrained": Scheme(
        "Backdoor in a trained network",
        _pretrained,
        functools.partial(_backdoor_budget, afterwards=True),
        _trained_further,
    ),
    "entangled": Scheme("Entangled watermark", functools.partial(_entangled, plain=False), _entangled_budget),
    "entangled_plain": Scheme(
        "The same triggers without entanglement", functools.partial(_entangled, plain=True), _entangled_budget
    ),
}
"""Marks by name; another one is plugged in by an entry of its own."""

__all__ = ["SCHEMES", "MarkSettings", "Scheme"]
