"""Who could hold a model that was made from somebody else's: threat models, and the innocent to compare them with."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static
from dfke_jax.core.types import Array, Key
from dfke_jax.distillation import data_impressions
from dfke_jax.distillation.response import knowledge_distillation, response_loss, table_of_answers
from dfke_jax.evaluation import pgd
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.students import distil
from dfke_jax.experiments.bench.workbench import Answers
from dfke_jax.experiments.ownership.settings import TheftSettings, ThreatSettings
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.many import SPARE
from dfke_jax.nn.supervised import cross_entropy_training
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.oracle import GaussianNoise, Ledger, Reveal, oracle_for

Pair = tuple[np.ndarray, np.ndarray]
"""Images (N, H, W, C) and labels (N,)."""


class Parts(NamedTuple):
    """A training set cut into pieces that have no image in common.

    Attributes:
      private: what the victim is trained on; its first rows are shown to suspects.
      public: of the same distribution, known to no model.
      others: what thieves ask the victim about.
      innocent: what independent models are trained on.
    """

    private: Pair
    public: Pair
    others: Pair
    innocent: Pair


def cut(images: np.ndarray, labels: np.ndarray, sizes: tuple[int, int, int], seed: int) -> tuple[Parts, int]:
    """Cuts a training set at random; equal images are one image.

    Args:
      images, labels: (N, H, W, C) and (N,).
      sizes: of private, public and others; the innocent get the rest, at least twice as many as
        private.
      seed: of the cut.

    Returns:
      The parts, and how many repeated images were left out.

    Raises:
      InputError: more images asked for than there are.
    """
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    kept = np.sort(
        np.unique(flat.view(np.dtype((np.void, flat.itemsize * flat.shape[1]))).ravel(), return_index=True)[1]
    )
    needed = sum(sizes) + SPARE * sizes[0]
    if len(kept) < needed:
        raise InputError(
            f"{len(kept)} different training images cannot be cut into {sizes[0]} private, {sizes[1]} public and {sizes[2]} "
            f"other ones with {SPARE * sizes[0]} left for independent models; ask for fewer"
        )
    order = np.random.default_rng(seed).permutation(kept)
    places = np.split(order, np.cumsum(sizes))
    return Parts(*((images[place], labels[place]) for place in places)), len(images) - len(kept)


# ---- thieves


class Theft(NamedTuple):
    """What a thief works with: the run of a seed, the data and the victim."""

    run: Run[Any]
    parts: Parts
    victim: Classifier

    @property
    def config(self) -> TheftSettings:
        """The recipe's settings."""
        return self.run.config

    def train(self, name: str, method: Method, steps: int, network: Classifier) -> Classifier:
        """Runs a training as a stage of its own."""
        rows = self.config.distillation_batch
        return trained(network, self.run.stage("theft", f"{name}/model", method, steps, rows=rows))

    @property
    def means(self) -> ThreatSettings:
        """The settings, where they say what all thieves need."""
        assert isinstance(self.config, ThreatSettings)
        return self.config

    @property
    def student(self) -> Classifier:
        """The thief's network, untrained."""
        return self.run.network(self.config.student)

    def ask(self, reveal: Reveal) -> tuple[Array, int]:
        """The victim's answers to the others' images, and how many rows that took."""
        images = self.parts.others[0]
        with Ledger(budget=len(images)) as ledger:
            with ledger.paying(len(images)):
                answers = reveal.of_logits(table_of_answers(self.victim, jnp.asarray(images)))
            return answers, ledger.counts()["rows"] or 0


class Suspect(NamedTuple):
    """A stolen model, and what its making took."""

    model: Classifier | Answers
    budget: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Threat:
    """One way to come by a model.

    Attributes:
      label: in tables and figures.
      make: `Theft` -> `Suspect`.
    """

    label: str
    make: Callable[[Theft], Suspect]


def _learning(theft: Theft) -> dict[str, int | float]:
    c = theft.config
    return {
        "steps": c.distillation_steps,
        "batch_size": c.distillation_batch,
        "learning_rate": c.distillation_learning_rate,
    }


def _distilled(theft: Theft, name: str, steps: int | None = None) -> Suspect:
    images = jnp.asarray(theft.parts.private[0])
    learning = _learning(theft)
    method = knowledge_distillation(theft.student, theft.victim, images, temperature=1.0, **learning)  # type: ignore[arg-type]
    steps = steps or theft.config.distillation_steps
    model = theft.train(name, method, steps, theft.student)
    return Suspect(model, {"private_samples": len(images), "steps": steps})


def _distillation(theft: Theft) -> Suspect:
    return _distilled(theft, "distillation")


def _early_stopping(theft: Theft) -> Suspect:
    return _distilled(theft, "early_stopping", max(1, round(theft.means.early * theft.means.distillation_steps)))


def _different_architecture(theft: Theft) -> Suspect:
    images, labels = map(jnp.asarray, theft.parts.private)
    network = theft.run.network(theft.means.other_network)
    method = cross_entropy_training(network, images, labels, **_learning(theft))  # type: ignore[arg-type]
    model = theft.train("different_architecture", method, theft.config.distillation_steps, network)
    return Suspect(model, {"private_samples": len(images), "steps": theft.config.distillation_steps})


def _zero_shot(theft: Theft) -> Suspect:
    c = theft.means
    synthesis = data_impressions(theft.victim, c.synthesis, c.impressions, c.impressions)
    pool = theft.run.pool("zero_shot", synthesis, c.impressions, c.impressions)
    model = distil(theft.run, "zero_shot", pool.images, teacher=theft.victim)
    return Suspect(model, {"synthetic_samples": c.impressions, "steps": c.distillation_steps})


def _label_query(theft: Theft) -> Suspect:
    labels, asked = theft.ask(Reveal("label"))
    images = jnp.asarray(theft.parts.others[0])
    method = cross_entropy_training(theft.student, images, labels, **_learning(theft))  # type: ignore[arg-type]
    model = theft.train("label_query", method, theft.config.distillation_steps, theft.student)
    return Suspect(model, {"victim_rows": asked, "steps": theft.config.distillation_steps})


def _logit_query(theft: Theft) -> Suspect:
    logits, asked = theft.ask(Reveal("logits"))
    c, rule = theft.config, optimiser("adam", theft.config.distillation_learning_rate, theft.config.distillation_steps)
    images = jnp.asarray(theft.parts.others[0])
    method = training(
        theft.student, images, logits, loss=response_loss(1.0), optimizer=rule, batch_size=c.distillation_batch
    )
    model = theft.train("logit_query", method, c.distillation_steps, theft.student)
    return Suspect(model, {"victim_rows": asked, "steps": c.distillation_steps})


def _fine_tuning(theft: Theft) -> Suspect:
    labels, asked = theft.ask(Reveal("label"))
    c = theft.means
    method = fine_tuning(
        theft.victim, jnp.asarray(theft.parts.others[0]), labels, c.fine_tuning_rate, c.distillation_batch
    )
    model = theft.train("fine_tuning", method, c.fine_tuning_steps, theft.victim)
    return Suspect(model, {"victim_rows": asked, "steps": c.fine_tuning_steps})


def fine_tuning(classifier: Classifier, images: Array, labels: Array, rate: float, batch_size: int) -> Method:
    """Goes on training a classifier on other labels: SGD with momentum at a constant rate."""
    rule = optimiser("sgd", rate)
    return training(
        classifier, images, labels, loss=Partial(cross_entropy), optimizer=rule, batch_size=batch_size, fine_tune=True
    )


def _adversarial_training(theft: Theft) -> Suspect:
    c, images = theft.means, jnp.asarray(theft.parts.private[0])
    method = training(
        theft.student,
        images,
        table_of_answers(theft.victim, images),
        loss=response_loss(1.0),
        optimizer=optimiser("adam", c.distillation_learning_rate, c.distillation_steps),
        batch_size=c.distillation_batch,
        adversary=Partial(_worst, Static((c.epsilon, c.adversarial_steps))),
    )
    model = theft.train("adversarial_training", method, c.distillation_steps, theft.student)
    return Suspect(model, {"private_samples": len(images), "steps": c.distillation_steps})


def _worst(static: Static, key: Key, network: Callable, images: Array, logits: Array) -> Array:
    """PGD away from the teacher's answer."""
    epsilon, steps = static.value
    return pgd(key, network, images, jax.nn.softmax(logits), epsilon, steps=steps)


def _noisy_answers(theft: Theft) -> Suspect:
    noise = GaussianNoise(theft.means.answer_noise, seed=theft.run.seed)
    return Suspect(Answers(oracle_for(theft.victim, Reveal("probabilities"), [noise])), {"steps": 0})


THREATS: dict[str, Threat] = {
    "distillation": Threat("Distillation, private data", _distillation),
    "different_architecture": Threat("Other network, private data", _different_architecture),
    "zero_shot": Threat("Zero-shot (impressions)", _zero_shot),
    "fine_tuning": Threat("Victim fine-tuned", _fine_tuning),
    "label_query": Threat("Label queries", _label_query),
    "logit_query": Threat("Logit queries", _logit_query),
    "adversarial_training": Threat("Adaptive: adversarial", _adversarial_training),
    "noisy_answers": Threat("Adaptive: noisy answers", _noisy_answers),
    "early_stopping": Threat("Adaptive: early stopping", _early_stopping),
}
"""By name. The adaptive ones are made to escape the test: the first and the last are distilled on the private data, the other is
the victim itself behind noise."""

__all__ = [
    "THREATS",
    "Parts",
    "Suspect",
    "Theft",
    "Threat",
    "cut",
    "fine_tuning",
]
