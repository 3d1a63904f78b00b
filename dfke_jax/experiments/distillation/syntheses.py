"""What recipes have in common that synthesise a pool: anchors, uniform noise, methods and their matched controls."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dfke_jax.core.method import Method
from dfke_jax.evaluation.diversity import class_histogram, histogram_entropy, mean_pairwise_distance
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import PoolSettings
from dfke_jax.experiments.bench.students import distil
from dfke_jax.experiments.distillation.anchors import anchor_arms, measure_anchors
from dfke_jax.nn.classifier import Classifier
from dfke_jax.synthesis.pool import Pool


@dataclasses.dataclass(frozen=True)
class SynthesisRecipe:
    """A method and its matched control: the same start images, labelling, augmentation and distillation, no synthesis.

    Attributes:
      name, label: of the method's arm.
      make: ``(run, control) -> Method`` that fills a pool of the configuration's size.
      steps: updates of a sample, for the budget.
      control: name of the control's arm, ``NAME_control`` by default; None where another arm's control serves.
      draws_as: name whose keys method and control draw from; `name` by default. Methods that share it share their
        start images, and one control serves them all.
      used: what else the method used, its control not: see `dfke_jax.experiments.bench.budgets.distilled`.
      augmentations: those that the same pools are distilled with as well, in arms of their own.
    """

    name: str
    label: str
    make: Callable[[Run[Any], bool], Method]
    steps: int
    control: str | None = ""
    draws_as: str = ""
    used: Callable[[Run[Any]], dict[str, Any]] = lambda run: {}
    augmentations: tuple[str, ...] = ()

    def arms(self) -> list[Arm]:
        """Of the method and its control, at every augmentation."""
        made = [Arm(self.name, self.label, "method")]
        if self.control is not None:
            made.append(Arm(self.control or f"{self.name}_control", "Start images, no synthesis", "control"))
        for other in self.augmentations:
            for name, arm in zip(self._others(other), made[:2], strict=False):
                made.append(Arm(name, f"{arm.label}, {other} augmentation", arm.role))
        return made

    def _others(self, augmentation: str) -> tuple[str, str]:
        """Names of the method's and the control's arm at another augmentation."""
        return f"{self.name}_{augmentation}", f"{self.name}_{augmentation}_control"

    def measure(self, run: Run[Any]) -> None:
        """Makes the pools and distils from them."""
        c, names = run.config, [self.name]
        if self.control is not None:
            names.append(self.control or f"{self.name}_control")
        for control, name in enumerate(names):
            steps, used = (0, {}) if control else (self.steps, self.used(run))
            draws_as = self.draws_as or self.name
            pool = run.pool(name, self.make(run, bool(control)), c.samples, c.synthesis_batch, draws_as=draws_as)
            budget = budgets.distilled(c, c.samples, steps, **used)
            metrics = {**pool_metrics(pool, run.teacher), **sample_diversity(run, pool.images)}
            run.record(name, distil(run, name, pool.images), metrics, budget=budget)
            for other in self.augmentations:
                arm = self._others(other)[control]
                budget = budgets.distilled(c, c.samples, steps, augment=other)
                run.record(arm, distil(run, arm, pool.images, other), budget=budget)


def synthesis_arms(config: PoolSettings, methods: Sequence[SynthesisRecipe]) -> list[Arm]:
    """Teacher, distillation with real data and, if wanted, uniform noise; then the methods and their controls."""
    noise = [Arm("noise", "Uniform noise", "baseline")] if config.baselines else []
    return [*anchor_arms(config), *noise, *(arm for method in methods for arm in method.arms())]


def measure_syntheses(run: Run[Any], methods: Sequence[SynthesisRecipe]) -> None:
    """All arms of `synthesis_arms`, of one seed."""
    measure_anchors(run)
    if run.config.baselines:  # the baseline without any idea: independent pixels, answered by the teacher
        count = run.config.samples
        images = jax.random.uniform(run.key("noise"), (count, *run.dataset.shape))
        run.record("noise", distil(run, "noise", images), budget=budgets.distilled(run.config, count))
    for method in methods:
        method.measure(run)


def pool_metrics(pool: Pool, teacher: Classifier) -> dict[str, float]:
    """What a pool looks like to the teacher.

    Returns:
      ``class_entropy``: of the teacher's answers over the pool, as a share of its maximum; ``label_agreement``: per
      cent of samples that the teacher puts into the class they were made for.
    """
    predicted = np.argmax(teacher.predict(np.asarray(pool.images)), 1)
    entropy = histogram_entropy(class_histogram(predicted, teacher.num_classes), normalised=True)
    return {"class_entropy": entropy, "label_agreement": 100 * float((predicted == np.asarray(pool.labels)).mean())}


def sample_diversity(run: Run[Any], images: Any) -> dict[str, float]:
    """``sample_diversity``: mean distance of two of the images, as a share of that of two real training images."""
    real = mean_pairwise_distance(run.dataset.train.images)
    return {"sample_diversity": mean_pairwise_distance(np.asarray(images)) / real}


__all__ = ["SynthesisRecipe", "measure_syntheses", "pool_metrics", "sample_diversity", "synthesis_arms"]
