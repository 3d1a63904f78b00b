"""One marked network under attack: what every attack leaves of it and of its mark."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.evaluation import accuracy, agreement
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.result import Series
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.watermarks.removal_extractions import EXTRACTIONS, Extractions
from dfke_jax.experiments.watermarks.removal_marks import SCHEMES
from dfke_jax.experiments.watermarks.removal_settings import RemovalSettings, options_of
from dfke_jax.nn.classifier import Classifier
from dfke_jax.watermarking.removal import (
    RemovalAttack,
    Removed,
    Row,
    Standing,
    Watch,
    removal,
    removal_matrix,
    reverse_triggers,
    standing,
)
from dfke_jax.watermarking.triggers import TriggerSet

Figures = dict[str, Any]
"""Of one arm at one seed, as `Run.once` keeps them and `Run.enter` takes them: ``accuracy``, ``agreement``,
``metrics`` and, where they are known, ``budget`` and ``label``; ``series`` as dictionaries."""


class Shared(NamedTuple):
    """What all seeds share: the other task of transfer learning, and the attacks by extraction with their pools."""

    other: data.Dataset | None
    extractions: Extractions


def prepare(bench: Workbench) -> Shared:
    """Loads the other task.

    Raises:
      InputError: its images have another shape.
    """
    config: RemovalSettings = bench.config  # type: ignore[assignment]
    other = None
    if "transfer_learning" in config.made:
        other = data.load(config.other, data_dir=bench.data_dir)
        if other.shape != bench.dataset.shape:
            raise InputError(
                f"images of {config.other} are {other.shape}, those of {config.dataset} {bench.dataset.shape}; transfer "
                "learning needs one shape"
            )
    return Shared(other, Extractions(config, bench))


class Victim:
    """A marked network of one seed.

    Args:
      run: of the seed. scheme: name of the mark. network: marked. triggers: of the mark.
    """

    def __init__(self, run: Run[RemovalSettings], scheme: str, network: Classifier, triggers: TriggerSet):
        self.run, self.scheme, self.network, self.triggers = run, scheme, network, triggers
        images, labels = run.bench.train
        count = run.config.attacker_images or len(labels)
        self.held = images[:count], labels[:count]

    def figures(self, attack: str) -> dict[str, Figures]:
        """What an attack leaves: arm -> its figures. It is made once; a resumed run reads it."""
        make = functools.partial(self._cloned if attack in EXTRACTIONS else self._attacked, attack)
        return self.run.once(f"attacks/{self.scheme}.{attack}", make, options_of(self.run.config, attack))

    def _cloned(self, attack: str) -> dict[str, Figures]:
        """A clone of the marked network and, as its control, one of the network without a mark, asked the same triggers."""
        run, label, name = self.run, SCHEMES[self.scheme].label, f"{self.scheme}.{attack}"
        found = {}
        for arm, victim, stage, title in (
            (name, self.network, name, label),
            (f"{name}_control", run.teacher, f"unmarked.{attack}", f"No mark ({label})"),
        ):
            with run.clock("removal"):
                clone = run.shared.extractions.clone(attack, stage, run.seed, victim)
            said = {"label": f"{title}: {clone.description}", "budget": clone.settings["budget"]}
            found[arm] = figures_of(run, clone, stands(run, clone, self.triggers), victim) | said
        return found

    def _attacked(self, attack: str) -> dict[str, Figures]:
        """The network after an attack by somebody who has it."""
        run = self.run
        with run.clock("removal"):
            row = self._row(attack)
        held = len(run.shared.other.train) if attack == "transfer_learning" else len(self.held[1])
        found = figures_of(run, row.removed, row.after, self.network) | {
            "label": f"{SCHEMES[self.scheme].label}: {row.removed.description}",
            "budget": budgets.removal(attack, held, int(row.removed.settings.get("steps", 0))),
            "series": [dataclasses.asdict(one) for one in self._by_strength(row)],
        }
        return {f"{self.scheme}.{attack}": found}

    def _row(self, name: str) -> Row:
        run, other, test = self.run, self.run.shared.other, self.run.dataset.test
        attack: RemovalAttack = functools.partial(removal(name), **options_of(run.config, name))
        if name in ("neural_cleanse", "neural_cleanse_patching"):
            attack = functools.partial(attack, found=self._reversed)
        if name == "transfer_learning":
            attack = functools.partial(_on_other, attack, other.train.on_device(), other.num_classes)
        key = run.key("removal")  # the same for every scheme
        marked, points = {"": (self.network, self.triggers)}, run.config.points
        (row,) = removal_matrix(key, marked, {name: attack}, *self.held, test.images, test.labels, points=points)
        return _on_both_tasks(run, row, other) if name == "transfer_learning" else row

    @functools.cached_property
    def _reversed(self) -> Any:
        """What Neural Cleanse finds in the network; both attacks by it use the same."""
        run = self.run
        return reverse_triggers(run.key("reversal"), self.network, self.held[0], run.config.cleanse)

    def _by_strength(self, row: Row) -> list[Series]:
        """Accuracy and trigger accuracy against the attack's strength."""
        config, trace = self.run.config, row.removed.trace
        seen = zip(*(trace.get(name, ()) for name in ("steps", "accuracy", "trigger_accuracy")), strict=True)
        points = {steps: Standing(clean, trigger) for steps, clean, trigger in seen}
        option, over, strengths = {
            "magnitude_pruning": ("fraction", "share", config.fractions),
            "dormant_pruning": ("fraction", "share", config.fractions),
            "quantisation": ("bits", "bits", config.bits),
        }.get(row.attack, ("", "steps", ()))
        key = self.run.bench.key(0, "")  # none of these attacks draws
        with self.run.clock("removal"):
            for strength in strengths:
                removed = removal(row.attack)(key, self.network, *self.held, **{option: strength})
                points[strength] = stands(self.run, removed, self.triggers)
        # behind transfer learning's own output layer there is no accuracy on the way
        kinds = Standing._fields if row.attack != "transfer_learning" else ("trigger_accuracy",)
        return [
            Series.of_seed(kind, over, {x: round(getattr(found, kind), 4) for x, found in points.items()})
            for kind in kinds
            if points
        ]


def _on_other(
    transfer: RemovalAttack,
    given: tuple[Array, Array],
    num_classes: int,
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    watch: Watch | None = None,
) -> Removed:
    return transfer(key, marked, *given, num_classes=num_classes, watch=watch)


def _on_both_tasks(run: Run[RemovalSettings], row: Row, other: data.Dataset) -> Row:
    """The row of transfer learning: the accuracy, as everywhere, is that on the marked network's task, here behind its own
    output layer; what the new network is worth on its own task is a detail."""
    removed, test = row.removed, run.dataset.test
    correct = 100 * accuracy(removed.for_verification.predict(test.images), test.labels)
    own = 100 * accuracy(removed.classifier.predict(other.test.images), other.test.labels)
    removed = dataclasses.replace(removed, classifier=removed.for_verification, details={"other_accuracy": own})
    return row._replace(after=row.after._replace(accuracy=correct), removed=removed)


def stands(run: Run[RemovalSettings], removed: Removed, triggers: TriggerSet) -> Standing:
    """Accuracy on the test set and on the triggers."""
    return standing(removed, triggers, run.dataset.test.images, run.dataset.test.labels)


def figures_of(run: Run[RemovalSettings], removed: Removed, stands: Standing, reference: Classifier) -> Figures:
    """Accuracy of what is deployed, trigger accuracy of what is verified; agreement with `reference`."""
    images = run.dataset.test.images
    with run.clock("evaluation"):
        alike = agreement(removed.classifier.predict(images), reference.predict(images))
    metrics = {"trigger_accuracy": stands.trigger_accuracy}
    if "anomaly" in removed.details:
        metrics["anomaly"] = min(float(np.max(removed.details["anomaly"])), 1e6)  # infinite where all others tie
        metrics["flagged"] = len(removed.details["flagged"])
    metrics.update({name: removed.details[name] for name in ("own_mark", "other_accuracy") if name in removed.details})
    return {
        "accuracy": round(stands.accuracy, 4),
        "agreement": round(100 * alike, 4),
        "metrics": {name: round(float(value), 4) for name, value in metrics.items()},
    }


def enter(run: Run[RemovalSettings], arm: str, figures: Figures) -> None:
    """Enters them into an arm."""
    series = [Series(**{**one, "x": tuple(one["x"])}) for one in figures.get("series", ())]
    run.enter(arm, **{**figures, "series": series})


__all__ = ["Figures", "Shared", "Victim", "enter", "figures_of", "prepare", "stands"]
