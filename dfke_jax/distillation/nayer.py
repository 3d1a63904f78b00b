"""NAYER: images from embeddings of their labels, varied by a layer drawn for every batch."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, PyTree
from dfke_jax.distillation.bank import BankSettings, Made, bank_budget, bank_method
from dfke_jax.distillation.cmi import adam, fresh_generator
from dfke_jax.distillation.inversion_loss import (
    Averages,
    averaged,
    averaging_objective,
    no_averages,
)
from dfke_jax.distillation.needs import check_teacher, named
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.latent import invert
from dfke_jax.synthesis.targets import balanced_labels

EMBEDDINGS = ("one_hot", "random")


@dataclasses.dataclass(frozen=True)
class NAYERSettings(BankSettings):
    """How NAYER runs. Defaults: the released code's; warm-up in rounds of two batches.

    Attributes:
      chunk: images that share a noisy layer; 0 for K, so that every layer makes one image of each
        class.
      renew: rounds after which the generator is drawn afresh; 0 for never.
      average: m of the running averages of batch statistics; 0 for none.
    """

    rounds: int = 200
    batch_size: int = 400
    batches: int = 2
    warm_up: int = 100
    steps: int = 40
    generator_rate: float = 4e-3
    statistics: float = 10.0
    one_hot: float = 0.5
    adversarial: float = 1.33
    student_batch: int = 512
    student_rate: float = 0.2
    chunk: int = 0
    renew: int = 10
    average: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        if min(self.chunk, self.renew) < 0 or not 0 <= self.average < 1:
            raise InputError(
                "chunk and renew must not be negative and average lie in [0, 1), got "
                f"{self.chunk}, {self.renew} and {self.average}"
            )


class Noisy(NamedTuple):
    """What NAYER carries.

    Attributes:
      generator: parameters, and of the normalisation of embeddings. averages: of batch statistics.
        made: batches so far.
    """

    generator: PyTree
    averages: Averages
    made: Array


def label_embedding(kind: str, num_classes: int, width: int = 0, key: Key | None = None) -> Array:
    """A matrix (K, E) of embeddings that know nothing of language.

    Args:
      kind: ``one_hot`` (E = K), or ``random``: rows of a standard normal distribution, scaled to
        length one.
      width: E of ``random``. key: of ``random``.

    Raises:
      UnknownNameError: for another kind. InputError: a random embedding without width or key.
    """
    if kind == "one_hot":
        return jnp.eye(num_classes)
    if kind != "random":
        raise UnknownNameError("embedding of labels", kind, EMBEDDINGS)
    if width < 1 or key is None:
        raise InputError(
            f"a random embedding needs a width of at least 1 and a key, got {width} and {key}"
        )
    rows = jax.random.normal(key, (num_classes, width))
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def nayer(
    teacher: WhiteBox,
    student: Classifier,
    settings: NAYERSettings,
    *,
    embedding: Array | None = None,
    augment: Augmentation | None = None,
) -> Method:
    """Noisy-layer generation.

    x_b = G_θ(W_c·norm(e_{y_b}) + b_c), c the chunk of image b; W_c ~ N(0, 1), b_c = 0 drawn for
    every batch of images; 40 steps of Adam on (W, b, θ) down `inversion_loss`(a(x)), the statistics
    blended with their averages; the best batch goes to the bank. θ goes on from batch to batch and
    is drawn afresh every few rounds. Labels are balanced.

    Args:
      teacher: frozen, with batch normalisation unless ``statistics`` is 0. student: gives the
        network.
      settings: see `NAYERSettings`. ``steps=0`` is the control.
      embedding: (K, E), constants; published: embeddings of the classes' names by a text model.
        One-hot by default; see `label_embedding`.
      augment: a, of what the networks see while images are inverted, and of what the student
        learns.

    Returns:
      A `Method` over `BankState`, see `bank_method`.

    Raises:
      InputError: an embedding of other classes, a batch that chunks do not divide.

    Source: Tran, Le, Le, Tran and Phung, NAYER: Noisy Layer Data Generation for Efficient and
      Effective Data-free Knowledge Distillation, CVPR 2024, and its released code (schedule,
      weights).
    Deviations: no text model; the optimiser of θ begins anew with every batch.
    """
    check_teacher(teacher, named("nayer", settings.statistics))
    if embedding is None:
        embedding = label_embedding("one_hot", teacher.num_classes)
    if embedding.ndim != 2 or embedding.shape[0] != teacher.num_classes:
        raise InputError(
            f"embedding must be ({teacher.num_classes}, E), got shape {embedding.shape}"
        )
    chunk = settings.chunk or teacher.num_classes
    if settings.batch_size % chunk:
        raise InputError(
            f"a batch of {settings.batch_size} images is not made of chunks of {chunk}"
        )
    inverter = _NAYER(
        embedding=jnp.asarray(embedding, jnp.float32),
        augment=augment,
        settings=settings,
        chunk=chunk,
    )
    return bank_method(teacher, student, settings, inverter, augment)


def nayer_budget(settings: NAYERSettings, rounds: int) -> dict[str, int]:
    """What so many rounds cost."""
    return bank_budget(settings, rounds)


def noisy_latents(latents: PyTree, norm: PyTree, rows: Array) -> Array:
    """(B, E) embeddings -> (B, Z): normalised over the batch, then a dense layer of its own for
    every chunk.

    Args:
      latents: ``kernel`` (chunks, E, Z), ``bias`` (chunks, Z). norm: ``scale``, ``offset`` (E,).
    """
    mean, var = rows.mean(0, keepdims=True), rows.var(0, keepdims=True)
    normal = (rows - mean) * jax.lax.rsqrt(var + 1e-5) * norm["scale"][None] + norm["offset"][None]
    chunks = latents["kernel"].shape[0]
    made = jnp.einsum("cbe,cez->cbz", normal.reshape(chunks, -1, rows.shape[1]), latents["kernel"])
    return (made + latents["bias"][:, None]).reshape(rows.shape[0], -1)


def _drawn(s: NAYERSettings, teacher: WhiteBox, width: int, key: Key) -> PyTree:
    norm = {"scale": jnp.ones(width), "offset": jnp.zeros(width)}
    return {"network": fresh_generator(s, teacher).new(key).variables["params"], "norm": norm}


@record
class _NAYER:
    embedding: Array
    augment: Augmentation | None
    settings: NAYERSettings = static_field()
    chunk: int = static_field()

    def begin(self, key: Key, teacher: WhiteBox) -> Noisy:
        return Noisy(
            _drawn(self.settings, teacher, self.embedding.shape[1], key),
            no_averages(teacher),
            jnp.zeros((), jnp.int32),
        )

    def make(
        self, key: Key, teacher: WhiteBox, student: Classifier, number: Array, carried: Noisy
    ) -> Made:
        s, embedding = self.settings, self.embedding
        layer_key, generator_key, run_key = jax.random.split(key, 3)
        labels = balanced_labels(jnp.arange(s.batch_size, dtype=jnp.int32), teacher.num_classes)
        chunks, width = s.batch_size // self.chunk, embedding.shape[1]
        maker = fresh_generator(s, teacher)
        generator = carried.generator
        if s.renew and s.steps:
            fresh = (carried.made % (s.renew * s.batches) == 0) & (carried.made > 0)
            generator = jax.lax.cond(
                fresh, lambda: _drawn(s, teacher, width, generator_key), lambda: carried.generator
            )
        layer = {
            "kernel": jax.random.normal(layer_key, (chunks, width, s.latent)),
            "bias": jnp.zeros((chunks, s.latent)),
        }
        start = {"latents": layer, "generator": generator}

        def decode(optimised: dict[str, PyTree]) -> Array:
            z = noisy_latents(
                optimised["latents"], optimised["generator"]["norm"], embedding[labels]
            )
            return maker.images({"params": optimised["generator"]["network"]}, z)[0]

        if not s.steps:
            return Made(decode(start), labels, carried._replace(made=carried.made + 1), {})
        competes = (number >= s.warm_up).astype(jnp.float32)

        objective = averaging_objective(
            s, teacher, student, labels, competes, self.augment, carried.averages, s.average
        )
        rules = {name: adam(s.generator_rate) for name in start}
        found = invert(run_key, decode, objective, start, steps=s.steps, optimizers=rules)
        _, moments = found.last
        averages = averaged(moments, carried.averages, s.average) if moments else carried.averages
        carried = Noisy(found.optimised["generator"], averages, carried.made + 1)
        return Made(
            found.images, labels, carried, {"inversion_loss": found.loss, **found.beside[0]}
        )


__all__ = ["EMBEDDINGS", "NAYERSettings", "Noisy", "label_embedding", "nayer", "nayer_budget"]
