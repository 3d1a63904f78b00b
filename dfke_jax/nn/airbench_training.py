"""The training recipe of the CIFAR-10 speed-run record, for the network it was made for."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.mesh import constrain_samples
from dfke_jax.core.method import Method, Static, as_method, check_arguments
from dfke_jax.core.population import Strategy, population
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.nn.airbench import Airbench, whitening_filters
from dfke_jax.nn.classifier import Classifier, as_float, check_labels
from dfke_jax.nn.losses import cross_entropy, smooth_labels
from dfke_jax.nn.muon import muon
from dfke_jax.nn.training import Training, learn

Flip = Callable[[Array, Array, Array], Array]
"""(images (B, H, W, C), mirrored at first (B,), epoch ()) -> images; a `Partial`."""


@dataclasses.dataclass(frozen=True)
class AirbenchSettings:
    """How the speed run trains; the defaults are the published ones.

    Rates are those of a loss that is summed over the batch; all fall to zero linearly.

    Attributes:
      batch_size: B. epochs: passes over the images, each without replacement.
      steps: updates; 0 stands for ``epochs`` passes.
      kernel_rate, kernel_momentum: of Muon, on kernels of convolutions but the first.
      bias_rate, head_rate, momentum: of SGD with Nesterov momentum.
      weight_decay: share of biases and head that a step at the full rate takes away, per image.
      smoothing: ε of label smoothing.
      whitening_images: from how many images the first layer is set, which is then fixed.
      whitening_share: of the steps, after which the first layer's bias is fixed, too.

    Raises:
      InputError: for values that mean nothing.
    """

    batch_size: int = 2000
    epochs: int = 8
    steps: int = 0
    kernel_rate: float = 0.24
    kernel_momentum: float = 0.6
    bias_rate: float = 0.053
    head_rate: float = 0.67
    momentum: float = 0.85
    weight_decay: float = 2e-6
    smoothing: float = 0.2
    whitening_images: int = 5000
    whitening_share: float = 0.375

    def __post_init__(self):
        for name in ("batch_size", "epochs", "whitening_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("kernel_rate", "bias_rate", "head_rate", "whitening_share"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("momentum", "kernel_momentum", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.steps < 0 or not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"steps and weight_decay must not be negative, got {self.steps} and "
                f"{self.weight_decay}"
            )

    def steps_for(self, count: int) -> int:
        """Updates on so many images; the last images of a pass that fill no batch are left out."""
        return self.steps or self.epochs * (count // self.batch_size)


class AirbenchState(NamedTuple):
    """State of the training.

    Attributes:
      variables, optimizer_state: of the network.
      count: updates so far. order: (N,), rows in the order of this pass.
      mirrored: (N,), which images are mirrored in passes 0, 2, ...; the others are in 1, 3, ...
    """

    variables: PyTree
    optimizer_state: Any
    count: Array
    order: Array
    mirrored: Array


def airbench_training(
    classifier: Classifier,
    images: Array,
    labels: Array,
    settings: AirbenchSettings | None = None,
    *,
    augment: Augmentation | None = None,
    flip: Flip | None = None,
    rows: Array | None = None,
) -> Method:
    """Trains an `Airbench` network on labels as the speed run does.

    Published are ``augment=data.reflect_shift(2)`` and ``flip=Partial(data.alternating_flip)``;
    digits must not be mirrored.

    Args:
      classifier: gives an `Airbench` module and the preprocessing; variables are drawn afresh.
      images: (N, H, W, C) on the device, uint8 or float in the box. labels: (N,).
      settings: see `AirbenchSettings`; run it for ``settings.steps_for(N)`` steps.
      augment: of every batch, after `flip`.
      rows: (n,) integers, which images to train on; all by default. N above is then n.

    Returns:
      A `Method` over `AirbenchState` with metric ``loss``, the mean over the batch; `trained` puts
      the result into the classifier.

    Raises:
      InputError: another network, labels that do not fit, fewer images than a batch, a bare
        function as augmentation.

    Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, and its released code
    (``airbench94_muon``).
    Deviations: float32 unless another precision is chosen; the bias's schedule is a share of the
    steps.
    """
    settings = settings or AirbenchSettings()
    if not isinstance(classifier.module, Airbench):
        raise InputError(
            f"the speed run trains networks of its own family, not {classifier.name}; take "
            "airbench94, airbench94_half or airbench94_quarter"
        )
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    check_arguments((augment, flip), "augment and flip")
    count = len(images) if rows is None else jnp.shape(rows)[-1]
    if settings.batch_size > count:
        raise InputError(f"a batch of {settings.batch_size} out of {count} images")
    run = _Run(
        classifier=classifier,
        images=jnp.asarray(images),
        labels=jnp.asarray(labels, jnp.int32),
        augment=augment,
        flip=flip,
        rows=None if rows is None else jnp.asarray(rows),
        settings=settings,
    )
    return as_method(run)


def airbench_population(
    classifier: Classifier,
    images: Array,
    labels: Array,
    table: Array,
    settings: AirbenchSettings | None = None,
    *,
    augment: Augmentation | None = None,
    flip: Flip | None = None,
    strategy: Strategy = "auto",
    mesh: Mesh | None = None,
) -> Method:
    """`airbench_training` of M models on their shares of one array, as one method.

    Args:
      table: (M, n), from `shares` or `separate_shares`. strategy, mesh: see `core.population`.
      The others as for `airbench_training`.

    Returns:
      A `Method` whose state is a stack of M `AirbenchState`; run it with M keys. `member` gives one
      model.

    Raises:
      InputError: as `airbench_training`, or for a table that is none.
    """
    if jnp.ndim(table) != 2:
        raise InputError(f"a table of shares is (M, n), got shape {jnp.shape(table)}")
    airbench_training(
        classifier, images, labels, settings, augment=augment, flip=flip, rows=table[0]
    )  # for its checks: inside, labels are traced
    fixed = Static(settings or AirbenchSettings())
    labels = jnp.asarray(labels, jnp.int32)
    factory = Partial(_one, fixed, classifier, jnp.asarray(images), labels, augment, flip)
    return population(factory, jnp.asarray(table), strategy=strategy, mesh=mesh)


def _one(
    fixed: Static,
    classifier: Classifier,
    images: Array,
    labels: Array,
    augment: Augmentation | None,
    flip: Flip | None,
    rows: Array,
) -> Method:
    run = _Run(
        classifier=classifier,
        images=images,
        labels=labels,
        augment=augment,
        flip=flip,
        rows=rows,
        settings=fixed.value,
    )
    return as_method(run)


@functools.lru_cache(maxsize=64)
def airbench_optimiser(settings: AirbenchSettings, steps: int) -> optax.GradientTransformation:
    """The optimiser of so many steps, for the gradient of a loss that is summed over the batch; the
    same arguments give the same object.
    """
    s = settings
    decay = s.weight_decay * s.batch_size

    def falling(rate: float, steps: int) -> optax.Schedule:
        return optax.linear_schedule(rate, 0.0, steps)

    def sgd(rate: float, steps: int) -> optax.GradientTransformation:
        rule = optax.sgd(falling(rate, steps), s.momentum, nesterov=True)
        return optax.chain(optax.add_decayed_weights(decay / rate), rule)

    groups = {
        "kernel": muon(falling(s.kernel_rate, steps), s.kernel_momentum),
        "bias": sgd(s.bias_rate, steps),
        "head": sgd(s.head_rate, steps),
        "whitening": optax.set_to_zero(),
        "whitening bias": sgd(s.bias_rate, math.ceil(s.whitening_share * steps)),
    }
    return optax.partition(groups, _groups)  # type: ignore[arg-type]


def _groups(params: PyTree) -> PyTree:
    def group(path: tuple, leaf: Array) -> str:
        layer, name = path[0].key, path[-1].key
        if layer == "whiten":
            return "whitening" if name == "kernel" else "whitening bias"
        if layer == "head":
            return "head"
        return "kernel" if leaf.ndim == 4 else "bias"

    return jax.tree.map_with_path(group, params)


@record
class _Run:
    classifier: Classifier
    images: Array
    labels: Array
    augment: Augmentation | None
    flip: Flip | None
    rows: Array | None
    settings: AirbenchSettings = static_field()

    @property
    def count(self) -> int:
        return self.images.shape[0] if self.rows is None else self.rows.shape[0]

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return airbench_optimiser(self.settings, self.settings.steps_for(self.count))

    def taken(self, chosen: Array) -> Array:
        """Rows of the whole array."""
        return chosen if self.rows is None else self.rows[chosen]

    def init(self, key: Key) -> AirbenchState:
        of = self.classifier
        network_key, flip_key = jax.random.split(key)
        variables = Classifier.create(
            of.module, network_key, of.input_shape, of.preprocessing
        ).variables
        first = self.taken(jnp.arange(min(self.settings.whitening_images, self.count)))
        filters = whitening_filters(of.preprocessing(as_float(self.images[first])))
        whiten = {**variables["params"]["whiten"], "kernel": filters}
        variables = {**variables, "params": {**variables["params"], "whiten": whiten}}
        return AirbenchState(
            variables,
            self.optimizer.init(variables["params"]),
            jnp.zeros((), jnp.int32),
            jnp.arange(self.count),
            jax.random.bernoulli(flip_key, shape=(self.count,)),
        )

    def step(self, key: Key, state: AirbenchState) -> tuple[AirbenchState, Metrics]:
        s, of = self.settings, self.classifier
        order_key, augment_key, dropout_key = jax.random.split(key, 3)
        epoch, place = jnp.divmod(state.count, self.count // s.batch_size)
        order = jax.lax.cond(
            place == 0,
            lambda: jax.random.permutation(order_key, self.count),
            lambda: state.order,
        )
        chosen = jax.lax.dynamic_slice(order, (place * s.batch_size,), (s.batch_size,))
        rows = self.taken(chosen)
        batch = constrain_samples(as_float(self.images[rows]))
        if self.flip is not None:
            batch = self.flip(batch, state.mirrored[chosen], epoch)
        if self.augment is not None:
            batch = self.augment(augment_key, batch)
        wanted = smooth_labels(self.labels[rows], of.num_classes, s.smoothing)

        def summed(seen: Any, _: PyTree) -> tuple[Array, None]:
            return jnp.sum(cross_entropy(seen.logits, wanted)), None

        new, value, _ = learn(
            of.module,
            self.optimizer,
            Training(state.variables, state.optimizer_state),
            of.preprocessing(batch),
            summed,
            key=dropout_key,
        )
        state = AirbenchState(*new, state.count + 1, order, state.mirrored)
        return state, {"loss": value / s.batch_size}


__all__ = [
    "AirbenchSettings",
    "AirbenchState",
    "airbench_optimiser",
    "airbench_population",
    "airbench_training",
]
