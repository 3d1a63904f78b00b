"""Data impressions (zero-shot knowledge distillation): samples whose softmax the teacher's weights
ask for.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.losses import soft_cross_entropy
from dfke_jax.nn.training import optimiser
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.noise import Synthesised
from dfke_jax.synthesis.priors import l2, total_variation
from dfke_jax.synthesis.starts import Range, SynthesisSettings, uniform_noise
from dfke_jax.synthesis.synthesiser import Options, Synthesis
from dfke_jax.synthesis.targets import class_similarity, concentrations, dirichlet_targets, per_row


@dataclasses.dataclass(frozen=True)
class ImpressionSettings(SynthesisSettings):
    """How data impressions are made. The defaults are the published method for grey images.

    Attributes:
      steps: updates per sample.
      learning_rate: of Adam (published: 0.01 on MNIST and Fashion-MNIST, 0.001 on CIFAR-10).
      temperature: τ of the teacher's softmax.
      scales: β; every scale serves an equal share of the samples.
      floor: added to the min-max-normalised similarities.
      start: ``uniform``, ``gaussian`` or ``smooth``; with start_mean, start_sd and start_blur
        (pixels), each (low, high).
      total_variation: weight (low, high); spaced evenly in its logarithm over the samples. (0, 0)
        for none.
      l2: weight of Σ x².
      jitter: pixels.
      released: behave as the released code does: β is 1 throughout (its 0.1 is normalised away),
        learning rate as given, start U(0, 1), the batch is rescaled by its global minimum and
        maximum after every step, and batches of a class and scale start from the previous batch's
        solution, Adam's moments included.
    """

    steps: int = 1500
    temperature: float = 20.0
    scales: tuple[float, ...] = (1.0, 0.1)
    floor: float = 1e-4
    start_mean: Range = (0.0, 0.0)
    start_sd: Range = (0.1, 0.1)
    total_variation: Range = (0.0, 0.0)
    l2: float = 0.0
    jitter: int = 0
    released: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"scales must be positive, got {self.scales}")
        if self.temperature <= 0:
            raise InputError(f"temperature must be positive, got {self.temperature}")
        if min(self.total_variation) < 0 or (self.total_variation[0] == 0) != (
            self.total_variation[1] == 0
        ):
            raise InputError(
                "total_variation must be (0, 0) or two positive weights, got "
                f"{self.total_variation}"
            )


def data_impressions(
    teacher: WhiteBox,
    settings: ImpressionSettings,
    count: int,
    batch_size: int,
    *,
    control: bool = False,
) -> Method:
    """Fills a pool with data impressions.

    For a sample of class k and scale β: y ~ Dir(β·α^k), with α^k the normalised row k of the cosine
    similarities of the teacher's last-layer weights; x = argmin CE(y, softmax(T(x)/τ)) [+
    w_tv·TV(x) + w_2·Σx²].

    Sample r is of class r mod K and of scale (r div K) mod (number of scales), so all are equally
    frequent. With ``released`` whole batches are of one class and scale; classes are equally
    frequent where K divides the number of batches.

    Args:
      teacher: frozen; it must show its last layer (see `needs`).
      settings: see `ImpressionSettings`.
      count: N, a multiple of `batch_size`.
      batch_size: samples optimised side by side. They are independent: it changes speed and nothing
        else (except with ``released``, whose rescaling couples a batch).
      control: return the same start images without any optimisation (with ``released``: every batch
        afresh, in the paper's order of classes).

    Returns:
      A `Method` over `Pool`, one batch per step.

    Raises:
      InputError: for a teacher without a dense last layer.

    Source: Nayak, Mopuri, Shaj, Babu, Chakraborty, ICML 2019; the image prior is not in the paper.
    """
    check_teacher(teacher, "data_impressions")
    kind = _Released if settings.released and not control else _Impressions
    return kind(
        teacher=teacher, settings=settings, count=count, batch_size=batch_size, control=control
    ).method()


@record
class _Impressions(Synthesis[ImpressionSettings]):
    def start(self, key: Key) -> Array:
        if self.settings.released:
            return uniform_noise(key, (self.batch_size, *self.teacher.input_shape))
        return super().start(key)

    def wanted(self, key: Key, labels: Array, rows: Array) -> tuple[Array, Array]:
        """Targets (B, K), and weights of the total variation (B,)."""
        scale = per_row(self.settings.scales, rows, self.teacher.num_classes)
        return self.targets(key, labels, scale), _smoothness(self.settings, rows, self.count)

    def targets(self, key: Key, labels: Array, scale: Array | float) -> Array:
        """y ~ Dir(β·α^k), (B, K), for scales β."""
        alpha = concentrations(class_similarity(self.teacher.head_kernel), self.settings.floor)
        return dirichlet_targets(key, alpha, labels, scale)

    def loss(self, key: Key, images: Array, wanted: tuple[Array, Array]) -> Array:
        targets, smoothness = wanted
        loss = soft_cross_entropy(self.teacher(images), targets, self.settings.temperature)
        if self.settings.total_variation[1]:
            loss = loss + smoothness * total_variation(images)
        if self.settings.l2:
            loss = loss + self.settings.l2 * l2(images - self.teacher.preprocessing.box[0])
        return loss

    def options(self, wanted: PyTree) -> Options:
        return {"jitter": self.settings.jitter}


def _smoothness(settings: ImpressionSettings, rows: Array, count: int) -> Array:
    """Weights (B,) evenly spaced in the logarithm; a stride decorrelates them from class and scale."""
    low, high = settings.total_variation
    if not high:
        return jnp.zeros(rows.shape)
    levels = min(count, 512)
    stride = 197 if levels % 197 else 199  # prime to the number of levels: every level is taken
    place = (rows * stride % levels).astype(jnp.float32) / max(levels - 1, 1)
    return low * (high / low) ** place


def _order(batches: int, classes: int, scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Class of every batch, and whether it is the first of its class and scale; what is left over
    goes to the first classes.
    """
    share = batches // classes
    lengths = [
        share // scales + (scale < share % scales)
        for scale in range(scales)
        for _ in range(classes)
    ]
    lengths += [1] * (batches - share * classes)
    order = np.repeat(np.arange(len(lengths)) % classes, lengths).astype(np.int32)
    first = np.zeros(batches, bool)
    first[np.cumsum([0, *lengths])[:-1][np.array(lengths) > 0]] = True
    return order, first


@record
class _Released(_Impressions):
    """Batches of one class and scale, each begun where the last of the same ended."""

    def first_carry(self) -> PyTree:
        start = jnp.zeros((self.batch_size, *self.teacher.input_shape))
        return start, optimiser("adam", self.settings.learning_rate).init(start)

    def of_batch(self, rows: Array) -> tuple[Array, Array]:
        """Class of the batch of these samples, and whether it is the first of its class and scale."""
        order, first = _order(
            self.count // self.batch_size, self.teacher.num_classes, len(self.settings.scales)
        )
        position = rows[0] // self.batch_size
        return jnp.asarray(order)[position], jnp.asarray(first)[position]

    def labels(self, rows: Array) -> Array:
        return jnp.full(self.batch_size, self.of_batch(rows)[0], jnp.int32)

    def wanted(self, key: Key, labels: Array, rows: Array) -> tuple[Array, Array]:
        return self.targets(key, labels, 1.0), jnp.zeros(self.batch_size)

    def resumed(self, start: Array, rows: Array, carry: PyTree) -> tuple[Array, PyTree]:
        begins = self.of_batch(rows)[1]
        fresh = start, optimiser("adam", self.settings.learning_rate).init(start)
        return jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, carry)

    def carried(self, made: Synthesised) -> PyTree:
        return made.images, made.optimizer_state

    def options(self, wanted: PyTree) -> Options:
        return {"parametrisation": "rescale"}


__all__ = ["ImpressionSettings", "data_impressions"]
