"""One seed of a recipe: where it works, and where its figures go."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import numpy as np

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Key
from dfke_jax.data import Dataset
from dfke_jax.evaluation.agreement import accuracy, agreement, balanced_accuracy, class_accuracies
from dfke_jax.experiments.bench.own import answers_freely
from dfke_jax.experiments.bench.result import Arm, Series, Trial
from dfke_jax.experiments.bench.workbench import Answers, Workbench
from dfke_jax.nn.classifier import Classifier
from dfke_jax.synthesis.pool import Pool

C = TypeVar("C")


class Run(Generic[C]):
    """What `Recipe.measure` is given: one seed, with everything that its work needs.

    Args:
      bench: of all seeds. seed: this one. arms: of the recipe; copied, without figures.
      shared: what `Recipe.prepare` made for all seeds.

    Attributes:
      config: the recipe's settings. bench, seed, shared: as given.
      arms: by name, with what has been recorded. notes: sentences that belong beside the figures.
    """

    def __init__(self, bench: Workbench, seed: int, arms: Sequence[Arm] = (), shared: Any = None):
        self.bench, self.seed, self.shared = bench, seed, shared
        self.config: C = bench.config  # type: ignore[assignment]
        self.arms = {arm.name: copy.deepcopy(arm) for arm in arms}
        self.notes: list[str] = []

    # ---- data, networks and keys

    @property
    def dataset(self) -> Dataset:
        """The data."""
        return self.bench.dataset

    @property
    def first(self) -> bool:
        """Whether this is the recipe's first seed, whose pictures are kept."""
        return self.seed == self.bench.config.seed

    @functools.cached_property
    def teacher(self) -> Classifier:
        """The seed's teacher: cross-entropy on the real training set, from the user's cache."""
        return self.bench.teacher(self.seed)

    def network(self, name: str) -> Classifier:
        """A network by name for this data set, untrained."""
        return self.bench.network(name)

    def key(self, name: str) -> Key:
        """The key of a stage: the seed's, folded with the stage's name."""
        return self.bench.key(self.seed, name)

    # ---- work that a stopped run does not repeat

    def stage(self, kind: str, name: str, method: Method, steps: int, **options: Any) -> Any:
        """Runs a method to its end, or takes up where it was left: see `Workbench.stage`."""
        return self.bench.stage(kind, name, self.seed, method, steps, **options)

    def once(self, name: str, make: Callable[[], Any], *decides: Any) -> Any:
        """What `make()` returns, made once for this seed: see `Workbench.once`."""
        return self.bench.once(name, self.seed, make, *decides)

    def clock(self, kind: str) -> AbstractContextManager[None]:
        """Books the time of a block on a kind of work."""
        return self.bench.clock(kind)

    def pool(self, name: str, method: Method, count: int, batch_size: int, *, draws_as: str | None = None) -> Pool:
        """Fills a pool (see `dfke_jax.synthesis.fill_pool`), one batch a chunk, and keeps a look at it.

        Args:
          name: of the arm. method, count, batch_size: of the pool.
          draws_as: the arm whose keys are used; a control uses its method's, and so gets its start
            images.
        """
        steps = count // batch_size
        stage, key = f"{name}/synthesis", f"{draws_as or name}/synthesis"
        state = self.stage("synthesis", stage, method, steps, rows=batch_size, chunk=1, draws_as=key)
        pool = getattr(state, "pool", state)
        self.keep(name, pool.images, pool.labels)
        return pool

    def keep(self, name: str, images: Array | np.ndarray, labels: Array | np.ndarray) -> None:
        """Keeps up to ten images of each class, of the first seed, for the report."""
        if self.first:
            self.bench.keep_samples(name, images, labels)

    # ---- figures

    def record(
        self,
        arm: str,
        network: Classifier | Answers,
        metrics: Mapping[str, float] | None = None,
        *,
        beside: Classifier | None = None,
        budget: Mapping[str, int] | None = None,
        label: str = "",
        series: Sequence[Series] = (),
    ) -> None:
        """Measures a network on the test set and enters it into an arm; that of the first seed is kept.

        Args:
          arm: name. network: what it trained.
          metrics: anything else worth keeping; rounded to six decimals.
          beside: the network with which it should agree; the teacher by default. Arms whose role is teacher agree
            with nobody.
          budget: counts of what the arm used, where its settings did not say so beforehand.
          label: the arm's, where it is known now only.
          series: of this seed, see `Series.of_seed`; rounded to six decimals.
        """
        test, right, alike = self.dataset.test, None, None
        with self.clock("evaluation"):
            logits = network.predict(test.images)
            if test.labelled:
                right = round(100 * accuracy(logits, test.labels), 4)
            alone = self._arm(arm).role == "teacher" or not answers_freely(self.teacher)
            if not alone or beside is not None:
                answers = (beside or self.teacher).predict(test.images)
                alike = round(100 * agreement(logits, answers), 4)
        if self.first and isinstance(network, Classifier):
            self.bench.keep_model(arm, network, self.seed)
        more, classes = self.by_class(logits)
        rounded = {name: round(float(value), 6) for name, value in {**more, **(metrics or {})}.items()}
        series = [*series, *classes]
        series = [dataclasses.replace(one, y=[[round(y, 6) for y in one.y[0]]]) for one in series]
        self.enter(arm, rounded, accuracy=right, agreement=alike, budget=budget, label=label, series=series)

    def by_class(self, answers: np.ndarray) -> tuple[dict[str, float], list[Series]]:
        """What accuracy on the test set does not say where its classes are unequal (`Dataset.unequal`); else nothing.

        Args:
          answers: scores (N, K), or classes (N,), of the test images.

        Returns:
          ``balanced_accuracy``, and the series of ``accuracy`` over ``class`` of those that occur; in per cent.
        """
        test = self.dataset.test
        if not self.dataset.unequal:
            return {}, []
        found = 100 * class_accuracies(answers, test.labels, self.dataset.num_classes)
        points = {k: round(float(value), 6) for k, value in enumerate(found) if np.isfinite(value)}
        balanced = round(100 * balanced_accuracy(answers, test.labels), 4)
        return {"balanced_accuracy": balanced}, [Series.of_seed("accuracy", "class", points)]

    @property
    def unmeasured(self) -> bool:
        """Whether neither accuracy nor agreement can be measured: no labels, and a victim that charges for answers."""
        return not self.dataset.labelled and not answers_freely(self.teacher)

    def leave(self, arm: str, why: str) -> None:
        """Drops an arm that the data does not allow, with a sentence in the result; at every seed or at none."""
        del self.arms[self._arm(arm).name]
        self.note(why)

    def record_teacher(self) -> None:
        """Enters the teacher's own row; of one that charges for answers, without asking it."""
        own, budget = self.bench.own, self.bench.supervised_budget
        if own is None:
            self.record("teacher", self.teacher, budget=budget)
            return
        said = [f"The teacher is a model of one's own: {own.opened.describe().splitlines()[0]}.", *own.opened.notes]
        free, labelled = answers_freely(self.teacher), self.dataset.labelled
        if not labelled:
            said.append("The data has no labels: accuracy cannot be measured, and was not.")
        if free and not labelled:
            said.append("Agreement is with the teacher, on test images.")
        if not free:
            within = "It charges for answers and is asked within the budgets alone:"
            said.append(
                f"{within} its accuracy, and how often clones agree with it, were not measured."
                if labelled
                else f"{within} how often clones agree with it was not measured either; budgets are all that is known "
                "of this run."
            )
        if free and labelled:
            self.record("teacher", self.teacher, budget={})
        else:
            self.enter("teacher", {"classes": self.dataset.num_classes}, budget={})
        self.note(*said)

    def enter(
        self,
        arm: str,
        metrics: Mapping[str, float] | None = None,
        *,
        accuracy: float | None = None,
        agreement: float | None = None,
        budget: Mapping[str, int] | None = None,
        label: str = "",
        series: Sequence[Series] = (),
        trials: Sequence[Trial] = (),
    ) -> None:
        """Enters figures into an arm as they are, in one call or in several; a figure has one value a seed.

        Args:
          arm: name. metrics, budget, label: as for `record`. accuracy, agreement: in per cent.
          series, trials: of this seed.
        """
        into = self._arm(arm)
        for name, value in (metrics or {}).items():
            if name in into.metrics:
                raise ValueError(f"{name} of {arm} was entered before")
            into.metrics[name] = [float(value)]
        for one in series:
            if into.over(one.over, one.name):
                raise ValueError(f"{one.name} over {one.over} of {arm} was entered before")
            into.series.append(one)
        for trial in trials:
            if into.trial(trial.test):
                raise ValueError(f"the trial by {trial.test} of {arm} was entered before")
            into.trials.append(trial)
        for values, value in ((into.accuracy, accuracy), (into.agreement, agreement)):
            if value is not None:
                if values:
                    raise ValueError(f"{arm} was recorded before")
                values.append(value)
        into.budget = dict(into.budget if budget is None else budget)
        into.label = label or into.label

    def _arm(self, name: str) -> Arm:
        if name not in self.arms:
            raise UnknownNameError("arm", name, self.arms)
        return self.arms[name]

    def note(self, *sentences: str) -> None:
        """Adds sentences to the result; what several seeds say in the same words stands there once."""
        self.notes += sentences


__all__ = ["Run"]
