"""Activation records: images whose layer responses follow statistics that were kept with the
network.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core import records
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Key
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.classifier import as_float, check_images, check_labels
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.starts import Range, SynthesisSettings
from dfke_jax.synthesis.synthesiser import Synthesis


class LayerRecord(NamedTuple):
    """Per-class Gaussian of one layer's pre-activations: N(mean_k, F_k F_kᵀ + diag(rest_k²)).

    Attributes:
      mean: (K, D). factor: (K, D, R), lower-triangular Cholesky factor (R = D) for small layers,
        leading principal directions otherwise. rest: (K, D), standard deviation that the factor
        leaves over; zero for small layers.
    """

    mean: Array
    factor: Array
    rest: Array


Record = dict[str, LayerRecord]


def record_activations(
    teacher: WhiteBox,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    layers: Sequence[str] | None = None,
    per_class: int = 1000,
    full_rank_limit: int = 512,
    rank: int = 256,
) -> Record:
    """The metadata that Lopes et al. assume a network is published with: per-class statistics of
    its layers.

    Args:
      teacher: the network.
      images, labels: real data (N, H, W, C) and (N,); every class must occur at least twice.
      layers: names as in `Classifier.activations`; every recorded layer and the logits by default.
      per_class: most images used per class.
      full_rank_limit: layers up to this width keep the whole covariance, as its Cholesky factor.
      rank: wider layers keep this many principal directions and, per unit, the variance beyond
        them.

    Returns:
      Layer name -> `LayerRecord`.

    Raises:
      InputError: for an unknown layer or a class with fewer than two images.

    Deviation: the released code multiplies noise by the covariance itself, so it draws from N(μ,
    Σ²); a factor of Σ is used here. It stores full covariances of wide convolutional layers as
    well.
    """
    check_teacher(teacher, "record_activations")
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images, teacher.input_shape, teacher.preprocessing.box)
    check_labels(labels, len(images), teacher.num_classes)
    known = [
        name
        for name in jax.eval_shape(teacher.activations, jnp.zeros((1, *teacher.input_shape)))
        if name != "features"
    ]
    layers = list(layers) if layers is not None else known
    for name in layers:
        if name not in known:
            raise UnknownNameError("layer", name, known)

    statistics: dict[str, list[tuple]] = {name: [] for name in layers}
    for label in range(teacher.num_classes):
        rows = np.flatnonzero(labels == label)[:per_class]
        if len(rows) < 2:
            raise InputError(
                f"class {label} has {len(rows)} image; a covariance needs at least two"
            )
        activations = _activations(teacher, images[rows])
        for name in layers:
            flat = np.asarray(activations[name], np.float64).reshape(len(rows), -1)
            statistics[name].append(_gaussian(flat, full_rank_limit, rank))
    return {
        name: LayerRecord(
            *(jnp.asarray(np.stack(part), jnp.float32) for part in zip(*parts, strict=True))
        )
        for name, parts in statistics.items()
    }


@jax.jit
def _activations(teacher: WhiteBox, images: Array) -> dict[str, Array]:
    return teacher.activations(as_float(images))


def _gaussian(
    flat: np.ndarray, full_rank_limit: int, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count, width = flat.shape
    mean = flat.mean(0)
    centred = (flat - mean) / np.sqrt(count - 1)
    variance = np.square(centred).sum(0)
    if width <= full_rank_limit:
        ridge = 1e-6 * max(variance.mean(), 1e-12)
        return (
            mean,
            np.linalg.cholesky(centred.T @ centred + ridge * np.eye(width)),
            np.zeros(width),
        )
    # With C = U S Vᵀ the scaled principal directions V S are Cᵀ U, and U comes from the small
    # matrix C Cᵀ.
    _, vectors = np.linalg.eigh(centred @ centred.T)
    leading = centred.T @ vectors[:, ::-1][:, :rank]
    factor = np.zeros((width, rank))
    factor[:, : leading.shape[1]] = leading
    return mean, factor, np.sqrt(np.maximum(variance - np.square(factor).sum(1), 0))


@dataclasses.dataclass(frozen=True)
class RecordSettings(SynthesisSettings):
    """How images are made from activation records.

    Attributes:
      layers: ``top`` (the logits), ``all``, or a tuple of layer names.
      steps: updates per sample (published: 1,000).
      learning_rate: of Adam.
      start: ``uniform``, ``gaussian`` or ``smooth``; with start_mean, start_sd and start_blur.
        Published: N(0.15, 0.1²).
    """

    layers: Literal["top", "all"] | tuple[str, ...] = "all"
    start_mean: Range = (0.15, 0.15)
    start_sd: Range = (0.1, 0.1)


def from_records(
    teacher: WhiteBox,
    record: Record,
    settings: RecordSettings,
    count: int,
    batch_size: int,
    *,
    control: bool = False,
) -> Method:
    """Fills a pool with images that respond as the records say.

    min_x Σ_l (1/n_l)·‖relu(r_l) − relu(φ_l(x))‖², with φ_l the pre-activations of layer l (n_l
    units) and r_l drawn for the sample's class from the record.

    Args:
      teacher: frozen.
      record: from `record_activations`.
      settings: see `RecordSettings`.
      count: N, a multiple of `batch_size`; sample r is of class r mod K.
      batch_size: a multiple of K.
      control: return the start images as they are.

    Returns:
      A `Method` over `Pool`.

    Source: Lopes, Fenu, Starner 2017. Deviations: the logits are matched without the ReLU,
    which would hide every negative one.
    """
    check_teacher(teacher, "from_records")
    if batch_size % teacher.num_classes:
        raise InputError(
            f"the batch size must be a multiple of the {teacher.num_classes} classes, got "
            f"{batch_size}"
        )
    names = {"top": ("logits",), "all": tuple(record)}.get(settings.layers, settings.layers)  # type: ignore[arg-type]
    for name in (names,) if isinstance(names, str) else names:
        if name not in record:
            raise UnknownNameError("recorded layer", name, record)
    chosen = {name: record[name] for name in names}
    return _FromRecords(
        teacher=teacher,
        recorded=chosen,
        settings=settings,
        count=count,
        batch_size=batch_size,
        control=control,
    ).method()


def draw(key: Key, record: LayerRecord, count: int) -> Array:
    """`count` draws per class from a record, (count, K, D)."""
    classes, width, rank = record.factor.shape
    factor_key, rest_key = jax.random.split(key)
    leading = jnp.einsum(
        "nkr,kdr->nkd", jax.random.normal(factor_key, (count, classes, rank)), record.factor
    )
    return (
        record.mean[None]
        + leading
        + record.rest[None] * jax.random.normal(rest_key, (count, classes, width))
    )


@records.record
class _FromRecords(Synthesis[RecordSettings]):
    """Attributes beside those of `Synthesis`: recorded, of the layers to match."""

    recorded: Record

    def wanted(self, key: Key, labels: Array, rows: Array) -> dict[str, Array]:
        """Layer -> pre-activations (B, D) to respond with."""
        per_class = self.batch_size // self.teacher.num_classes
        drawn = {
            name: draw(jax.random.fold_in(key, i), self.recorded[name], per_class)
            for i, name in enumerate(sorted(self.recorded))
        }
        # Rows come as r, r + 1, ... with r a multiple of K, so class k stands at every K-th place.
        return {name: values.reshape(self.batch_size, -1) for name, values in drawn.items()}

    def loss(self, key: Key, images: Array, wanted: dict[str, Array]) -> Array:
        activations = self.teacher.activations(images)
        loss = jnp.zeros(len(images))
        for name, target in wanted.items():
            got = activations[name].reshape(len(images), -1)
            if name != "logits":
                got, target = jax.nn.relu(got), jax.nn.relu(target)
            loss = loss + jnp.square(got - target).mean(1)
        return loss


__all__ = ["LayerRecord", "Record", "RecordSettings", "draw", "from_records", "record_activations"]
