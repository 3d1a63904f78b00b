"""Gradients from differences: what can be learned of a function's slope by evaluating it and
nothing else.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.mesh import on_own_samples, sample_devices
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.nn.precision import compute_precision


@dataclasses.dataclass(frozen=True)
class Differences:
    """How a gradient is estimated from differences; hashable, so it can stand in a `Static`.

    Attributes:
      epsilon: length of the step, in the norm of a whole sample: a coordinate moves by about
        epsilon/√D.
      directions: m, per sample.
      orthogonal: directions of one sample are orthonormal (needs m <= D) instead of independent:
        the same expectation, a smaller variance, and for m = D the whole gradient. It holds all m
        of them in memory.
      central: differences (f(x + εu) − f(x − εu)) / 2ε, exact for quadratic functions, from 2m
        evaluations; otherwise (f(x + εu) − f(x)) / ε from m + 1.
      scale: factor in front of the mean over directions; None is D, which makes the estimate
        unbiased for a linear function.

    Raises:
      InputError: for an epsilon that is not positive or no direction.
    """

    epsilon: float = 1e-3
    directions: int = 1
    orthogonal: bool = False
    central: bool = False
    scale: float | None = None

    def __post_init__(self):
        if not self.epsilon > 0:
            raise InputError(f"epsilon must be positive, got {self.epsilon}")
        if self.directions < 1:
            raise InputError(f"an estimate needs at least one direction, got {self.directions}")

    @property
    def rows_per_sample(self) -> int:
        """Evaluations of the function that one sample costs: m + 1, or 2m for central differences."""
        return 2 * self.directions if self.central else self.directions + 1


class Estimate(NamedTuple):
    """What `forward_difference` returns.

    Attributes:
      gradient: (B, ...).
      losses: (R, B), as evaluated, with R = `Differences.rows_per_sample`; without ``central`` the
        first row is f(x).
    """

    gradient: Array
    losses: Array


def unit_directions(key: Key, shape: tuple[int, ...], differences: Differences) -> Array:
    """(m, B, ...): per sample m vectors of length one, each uniform on the sphere of R^D.

    Args:
      key: direction i is drawn from ``fold_in(key, i)``, whatever m is; orthogonal ones are the
        Gram-Schmidt basis of these.
      shape: (B, ...) of the samples.

    Raises:
      InputError: for more orthogonal directions than dimensions.
    """
    _check(shape, differences)
    drawn = jax.vmap(lambda i: _direction(key, i, shape))(jnp.arange(differences.directions))
    return _orthonormal(drawn) if differences.orthogonal else drawn


def perturbed_rows(key: Key, x: Array, differences: Differences) -> Array:
    """The points at which the function must be evaluated.

    Args:
      key: hand the same one to `estimate`.
      x: (B, ...).
      differences: see `Differences`.

    Returns:
      (R·B, ...) with R = `Differences.rows_per_sample`, block by block: x, x + εu_1, ..., x + εu_m;
      for central differences x + εu_1, ..., x + εu_m, x − εu_1, ..., x − εu_m.
    """
    steps = differences.epsilon * unit_directions(key, x.shape, differences)
    forward = x[None] + steps
    blocks = [forward, x[None] - steps] if differences.central else [x[None], forward]
    return jnp.concatenate(blocks).reshape(-1, *x.shape[1:])


def estimate(key: Key, x: Array, losses: Array, differences: Differences) -> Array:
    """The gradient estimate from the losses at `perturbed_rows`, whose directions are drawn again
    from the key.

    g = (s/m) Σ_i [f(x + εu_i) − f(x)] / ε · u_i with s = D unless `Differences.scale` says
    otherwise. Independent directions are drawn one after another, so that memory does not grow with
    m.

    Args:
      key, x, differences: as given to `perturbed_rows`. Of `x` only the shape matters.
      losses: (R·B,) in the order of `perturbed_rows`.

    Returns:
      (B, ...) in float32.

    Raises:
      InputError: for another number of losses.

    Source: Truong et al., Data-Free Model Extraction, CVPR 2021, section 3; Kariyappa et al., MAZE,
      CVPR 2021, section 3.3.
    """
    _check(x.shape, differences)
    batch, count = x.shape[0], differences.directions
    if losses.shape != (differences.rows_per_sample * batch,):
        raise InputError(
            f"{batch} samples have {differences.rows_per_sample * batch} perturbed rows, got "
            f"losses {losses.shape}"
        )
    losses = losses.astype(jnp.float32).reshape(-1, batch)
    if differences.central:
        slopes = (losses[:count] - losses[count:]) / (2 * differences.epsilon)
    else:
        slopes = (losses[1:] - losses[:1]) / differences.epsilon
    spread = (batch,) + (1,) * (x.ndim - 1)
    if differences.orthogonal:
        directions = unit_directions(key, x.shape, differences).reshape(count, batch, -1)
        total = jnp.sum(directions * slopes[..., None], 0).reshape(x.shape)
    else:

        def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
            i, slope = place
            return total + slope.reshape(spread) * _direction(key, i, x.shape), None

        total, _ = jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), (jnp.arange(count), slopes))
    scale = x[0].size if differences.scale is None else differences.scale
    return total * (scale / count)


def forward_difference(
    key: Key,
    function: Callable[[Array], Array],
    x: Array,
    *,
    epsilon: float = 1e-3,
    directions: int = 1,
    orthogonal: bool = False,
    central: bool = False,
    scale: float | None = None,
    chunk: int | None = None,
) -> Estimate:
    """Estimates ∇f at every sample from evaluations alone, all of them in one call of the function.

    g = (D/m) Σ_i [f(x + εu_i) − f(x)] / ε · u_i with u_i uniform on the unit sphere of R^D. For a
    linear f its expectation is ∇f, and its cosine with ∇f about √(m/D).

    The function is evaluated at full float32 precision (`precise`): an accelerator's default
    products keep ten bits, and their errors exceed differences of the size ε‖∇f‖/√D. An epsilon
    below about 1e-4 meets float32's own rounding.

    Args:
      key: of the directions.
      function: (N, ...) -> (N,), one loss per row, rows independent of one another (no batch
        normalisation in training mode).
      x: (B, ...).
      epsilon, directions, orthogonal, central, scale: see `Differences`.
      chunk: rows evaluated together, to bound memory; all by default.

    Returns:
      `Estimate`.

    Raises:
      InputError: as `Differences`; for a function that does not give one number a row.

    Source: as `estimate`.
    """
    differences = Differences(epsilon, directions, orthogonal, central, scale)
    rows = perturbed_rows(key, x, differences)
    losses = in_chunks(precise(function), rows, chunk)
    if losses.shape != rows.shape[:1]:
        raise InputError(
            f"the function must map {rows.shape} to {rows.shape[:1]}, one loss a row, got "
            f"{losses.shape}"
        )
    return Estimate(estimate(key, x, losses, differences), losses.reshape(-1, x.shape[0]))


def in_chunks(function: Callable[[Array], PyTree], rows: Array, chunk: int | None) -> PyTree:
    """``function(rows)`` for a function that treats rows alone, `chunk` of them at a time; what is
    left over last.

    Under a mesh every device does so with its own rows.

    Raises:
      InputError: for a chunk below one.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"a chunk must have at least one row, got {chunk}")
    count = rows.shape[0]
    if chunk is None or chunk >= count:
        return function(rows)
    if sample_devices(count) > 1:
        if jax.tree_util.all_leaves([function]):
            function = Partial(function)
        return on_own_samples(
            lambda function, rows: in_chunks(function, rows, chunk), function, rows
        )
    whole = count // chunk * chunk
    parts = jax.lax.map(function, rows[:whole].reshape(-1, chunk, *rows.shape[1:]))
    done = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), parts)
    if whole == count:
        return done
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first, rest]), done, function(rows[whole:])
    )


def cache_chunk(count: int) -> int | None:
    """How many of `count` independent rows to evaluate together so that a small network's feature
    maps stay in the cache.

    On CPU between 32 and 64 where that divides `count` (a device's share of it), 64 otherwise; None
    (all at once) for 128 rows or fewer and on accelerators. A LeNet answers 1,792 rows in a third
    of the time so.
    """
    if jax.default_backend() != "cpu" or count <= 128:
        return None
    count //= sample_devices(count)
    return next((size for size in range(64, 31, -1) if count % size == 0), 64)


def precise(function: Callable[..., PyTree]) -> Partial:
    """The function with all its matrix products and convolutions in full float32, on accelerators
    too.

    Give it the oracle of an attack that takes differences of answers:
    ``against(attack, precise(victim))``. What is a pytree (a `Classifier`, a `Partial`) remains
    one.
    """
    if jax.tree_util.all_leaves([function]):
        function = Partial(function)
    return Partial(_precisely, function)


def _precisely(function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    with jax.default_matmul_precision("highest"), compute_precision("float32"):
        return function(*arguments)


def _check(shape: tuple[int, ...], differences: Differences) -> None:
    if len(shape) < 2:
        raise InputError(f"samples must be (B, ...) with at least one more axis, got shape {shape}")
    size = 1
    for length in shape[1:]:
        size *= length
    if differences.orthogonal and differences.directions > size:
        raise InputError(
            f"{differences.directions} directions cannot be orthogonal in {size} dimensions"
        )


def _direction(key: Key, index: Array, shape: tuple[int, ...]) -> Array:
    drawn = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
    axes = tuple(range(1, len(shape)))
    return drawn * jax.lax.rsqrt(jnp.sum(jnp.square(drawn), axes, keepdims=True))


def _orthonormal(drawn: Array) -> Array:
    """(m, B, ...) -> the same, orthonormal over m for every sample; the sign is that of the first
    draw.
    """
    count, batch = drawn.shape[:2]
    columns = drawn.reshape(count, batch, -1).transpose(1, 2, 0)
    basis, triangle = jnp.linalg.qr(columns)
    signs = jnp.sign(jnp.diagonal(triangle, axis1=1, axis2=2))
    # QR fixes no signs; without this the vectors would not be uniform on the sphere
    basis = basis * signs[:, None]
    return basis.transpose(2, 0, 1).reshape(drawn.shape)


__all__ = [
    "Differences",
    "Estimate",
    "cache_chunk",
    "estimate",
    "forward_difference",
    "in_chunks",
    "perturbed_rows",
    "precise",
    "unit_directions",
]
