"""The ceiling of fidelity: how far two networks agree that differ in one source of chance alone."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.evaluation import taxonomy
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import Settings, augmentation
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import Training, optimiser, trained, updated_by

_PAPER = "Jagielski et al., High Accuracy and High Fidelity Extraction, USENIX Security 2020"
SOURCES = {
    "initialisation": "Another initialisation",
    "order": "Another order of batches",
    "arithmetic": "Another order of summation",
}


@dataclasses.dataclass(frozen=True)
class NondeterminismSettings(Settings):
    """Settings of nondeterminism. The teacher is the first network."""

    teacher_augmentation: Literal["none", "shift", "affine", "crop_flip"] = "none"
    """Augmentation of every training; its draws belong to the order of batches."""
    parts: int = 2
    """Pieces of a batch whose gradients are added up, in the arm of another arithmetic."""

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.parts <= self.teacher_batch or self.teacher_batch % self.parts:
            raise InputError(f"parts must be at least 2 and divide the batch of {self.teacher_batch}, got {self.parts}")
        augmentation(self.teacher_augmentation)


@record
class _Supervised:
    """Training on labels whose three sources of chance are arguments.

    Attributes:
      classifier: gives the network. images, labels: the data.
      start: key of the first parameters. order: key of batches and augmentation.
      settings: of the recipe. parts: pieces of a batch whose gradients are added.
    """

    classifier: Classifier
    images: Array
    labels: Array
    start: Key
    order: Key
    settings: NondeterminismSettings = static_field()
    parts: int = static_field()

    @property
    def rule(self):
        """The optimiser."""
        return optimiser("adam", self.settings.teacher_learning_rate, self.settings.teacher_steps)

    def init(self, key: Key) -> tuple[Training, Array]:
        """The first parameters, and the number of steps made; the key says nothing."""
        like = self.classifier
        made = Classifier.create(like.module, self.start, like.input_shape, like.preprocessing)
        return Training(made.variables, self.rule.init(made.variables["params"])), jnp.zeros((), jnp.int32)

    def step(self, key: Key, state: tuple[Training, Array]) -> tuple[tuple[Training, Array], Metrics]:
        """One batch of Adam."""
        training, done = state
        rows_key, augment_key = jax.random.split(jax.random.fold_in(self.order, done))
        size = self.settings.teacher_batch
        rows = jax.random.randint(rows_key, (size,), 0, len(self.images))
        batch, labels = as_float(self.images[rows]), self.labels[rows]
        if (change := augmentation(self.settings.teacher_augmentation)) is not None:
            batch = change(augment_key, batch)

        def loss(params: PyTree, images: Array, labels: Array) -> Array:
            network = dataclasses.replace(self.classifier, variables={**training.variables, "params": params})
            return cross_entropy(network(images), labels).mean()

        def piece(carry: PyTree, part: tuple[Array, Array]) -> tuple[PyTree, Array]:
            value, gradient = jax.value_and_grad(loss)(training.variables["params"], *part)
            return jax.tree.map(lambda old, new: old + new / self.parts, carry, gradient), value

        if self.parts == 1:
            value, gradient = jax.value_and_grad(loss)(training.variables["params"], batch, labels)
        else:
            # a mean of means: the same number, rounded in another order
            divided = jax.tree.map(lambda x: x.reshape(self.parts, -1, *x.shape[1:]), (batch, labels))
            zero = jax.tree.map(jnp.zeros_like, training.variables["params"])
            gradient, values = lax.scan(piece, zero, divided)
            value = values.mean()
        return (updated_by(self.rule, training, gradient, {}), done + 1), {"loss": value}


def arms(config: NondeterminismSettings) -> list[Arm]:
    """The first network, and others with one source varied, with all, and with none."""
    control = "repeated_control"
    return [
        Arm("teacher", f"The network ({config.teacher})", "teacher"),
        *(Arm(name, label, "method", control=control) for name, label in SOURCES.items()),
        Arm("all", "All three", "anchor"),
        Arm(control, "Nothing varied", "control"),
    ]


def measure(run: Run[NondeterminismSettings]) -> None:
    """One seed: the network, and how far each of the others agrees with it."""
    config, classifier = run.config, run.network(run.config.teacher)
    if "batch_stats" in classifier.variables:
        raise InputError(
            f"{config.teacher} normalises by batches: its gradient is no sum over parts of one; take a network without"
        )
    images, labels = run.bench.train
    budget = run.bench.supervised_budget
    keys = {name: [run.key(f"{name}/{i}") for i in range(2)] for name in ("start", "order")}

    def made(name: str, *varied: str) -> Classifier:
        training = _Supervised(
            classifier=classifier,
            images=images,
            labels=labels,
            start=keys["start"]["initialisation" in varied],
            order=keys["order"]["order" in varied],
            settings=config,
            parts=config.parts if "arithmetic" in varied else 1,
        )
        state, _ = run.stage("anchors", name, as_method(training), config.teacher_steps)
        return trained(classifier, state)

    first = made("teacher")
    _enter(run, "teacher", first, None, budget)
    for name in SOURCES:
        _enter(run, name, made(name, name), first, budget)
    _enter(run, "all", made("all", *SOURCES), first, budget)
    _enter(run, "repeated_control", made("repeated"), first, budget)


def _enter(run: Run[Any], arm: str, network: Classifier, first: Classifier | None, budget: dict[str, int]) -> None:
    test = run.dataset.test
    labels = np.asarray(test.labels)
    if first is None:
        right = 100 * float((network.predict(test.images).argmax(-1) == labels).mean())
        run.enter(arm, accuracy=round(right, 4), budget=budget)
        return
    noise = np.random.default_rng(run.seed).random((1000, *run.dataset.shape), np.float32)
    found = taxonomy(first.predict, network.predict, test.images, noise, labels)
    metrics = {
        "total_variation": round(found["total_variation"], 6),
        "agreement_uniform": round(100 * found["fidelity_uniform"], 4),
        "largest_error": round(found["largest_error"], 6),
    }
    figures = {"accuracy": round(100 * found["accuracy"], 4), "agreement": round(100 * found["fidelity"], 4)}
    run.enter(arm, metrics, **figures, budget=budget)


RECIPE = register(
    Recipe(
        name="nondeterminism",
        title="The ceiling of fidelity, by its three sources",
        summary="Networks trained from the same images and labels, of which one source of chance is another: the first "
        "parameters, the order of batches, or the order in which a batch's gradient is summed up. That last one stands "
        "for other hardware, which rounds in another order: it is emulated on one machine by adding gradients of parts of "
        "the batch. The control varies nothing.",
        paper=f"{_PAPER}, section 4.4",
        config=NondeterminismSettings,
        arms=arms,
        measure=measure,
        time="2 min, 2 CPU cores (digits)",
        datasets=("digits", "mnist", "fashion_mnist"),
        presets={
            "digits": {"teacher_steps": 800, "fit": "bilinear"},
            "mnist": {"teacher_steps": 2000},
            "fashion_mnist": {"teacher_steps": 2000},
        },
    )
)

__all__ = ["RECIPE", "SOURCES", "NondeterminismSettings", "arms", "measure"]
