"""Many runs in one program."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static
from dfke_jax.core.types import Key, Metrics, PyTree

Strategy = Literal["auto", "vmap", "map", "unroll"]
_CACHE = 2**20  # bytes next to one core of a CPU
_side_by_side = jax.make_user_context(False)


def members_side_by_side() -> bool:
    """Whether this is traced for members of a population that run as one batched program on an
    accelerator.

    An operation with parameters of its own for every member may then have a better form:
    `dfke_jax.nn.conv` asks.
    """
    return _side_by_side.value


def population(
    factory: Callable[..., Method] | Method,
    hyperparameters: PyTree = None,
    *,
    strategy: Strategy = "auto",
    mesh: Mesh | None = None,
) -> Method:
    """Turns a method into a method over a stacked state: seeds, hyper-parameters, shadow or null
    models.

    Member *i* of the population is what `factory` builds from slice *i* of `hyperparameters`, run
    with key *i*. Its states and metrics have a leading axis M.

    Args:
      factory: hyper-parameters of one member -> `Method` (traceable: it may put them into an
        optimiser or a loss), or simply a `Method` when the members differ by their keys alone.
      hyperparameters: pytree whose leaves have a leading axis M, or None.
      strategy: ``vmap`` (one batched program), ``map`` (members in sequence inside one program),
        ``unroll`` (members written out; compiles in time proportional to M). ``auto``: vmap on
        accelerators; on CPU map where the step contains a convolution, whose batched form has no
        fast kernel there, or where one member's activations fill a core's cache, so that members
        side by side would send every operation through memory; vmap otherwise.
      mesh: a device mesh with an axis ``models``. The population axis is sharded over it, M must be
        a multiple of its size, and no communication takes place.

    Returns:
      A `Method` whose `init` and `step` take stacked keys (M,). `run` accepts such keys.
    """
    if strategy not in ("auto", "vmap", "map", "unroll"):
        raise InputError(f"strategy must be auto, vmap, map or unroll, not {strategy!r}")
    args = (_as_factory(factory), hyperparameters, Static((strategy, mesh)))
    return Method(Partial(_init, *args), Partial(_step, *args))


def _as_factory(factory: Callable[..., Method] | Method) -> Partial:
    if isinstance(factory, Method):
        return Partial(_constant, factory)
    return factory if isinstance(factory, Partial) else Partial(factory)


def _constant(method: Method, hyperparameters: PyTree) -> Method:
    return method


def _one_init(factory: Callable, hyperparameters: PyTree, key: Key) -> PyTree:
    return factory(hyperparameters).init(key)


def _one_step(
    factory: Callable, hyperparameters: PyTree, key: Key, state: PyTree
) -> tuple[PyTree, Metrics]:
    return factory(hyperparameters).step(key, state)


def _init(factory: Callable, hyperparameters: PyTree, static: Static, keys: Key) -> PyTree:
    return _each(_one_init, factory, static, hyperparameters, keys)


def _step(
    factory: Callable, hyperparameters: PyTree, static: Static, keys: Key, state: PyTree
) -> tuple[PyTree, Metrics]:
    return _each(_one_step, factory, static, hyperparameters, keys, state)


def _each(function: Callable, factory: Callable, static: Static, *stacked: PyTree) -> Any:
    strategy, mesh = static.value
    members = {leaf.shape[0] for leaf in jax.tree.leaves(stacked)}
    if len(members) != 1:
        raise InputError(
            "hyper-parameters, keys and state of a population must share their leading axis, got "
            f"sizes {sorted(members)}"
        )

    def local(factory: Callable, *stacked: PyTree) -> Any:
        chosen = _choose(strategy, function, factory, stacked)
        if chosen == "vmap":
            with _side_by_side(jax.default_backend() != "cpu"):
                return jax.vmap(lambda *one: function(factory, *one))(*stacked)
        if chosen == "map":
            return jax.lax.map(lambda one: function(factory, *one), stacked)
        count = jax.tree.leaves(stacked)[0].shape[0]
        each = [
            function(factory, *jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
            for i in range(count)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    if mesh is None:
        return local(factory, *stacked)
    (count,) = members
    if "models" not in mesh.axis_names or count % mesh.shape["models"]:
        raise InputError(
            f"a population of {count} does not divide over the axis 'models' of a mesh "
            f"{dict(mesh.shape)}"
        )
    spec = PartitionSpec("models")
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), *(spec for _ in stacked)),
        out_specs=spec,
        check_vma=False,
    )(factory, *stacked)


def _choose(strategy: Strategy, function: Callable, factory: Callable, stacked: tuple) -> Strategy:
    if strategy != "auto":
        return strategy
    if jax.default_backend() != "cpu":
        return "vmap"
    one = jax.tree.map(lambda leaf: leaf[0], stacked)
    jaxpr = jax.make_jaxpr(lambda *one: function(factory, *one))(*one)
    own = max((_bytes(leaf) for leaf in jax.tree.leaves(one)), default=0)
    # gradients and moments are no larger than the state
    fills = _largest_value(jaxpr.jaxpr) > max(own, _CACHE)
    return "map" if fills or _contains_convolution(jaxpr.jaxpr) else "vmap"


def _contains_convolution(jaxpr: Any) -> bool:
    return any(equation.primitive.name == "conv_general_dilated" for equation in equations(jaxpr))


def _largest_value(jaxpr: Any) -> int:
    """In bytes, of the values that the program computes."""
    return max(
        (_bytes(value.aval) for equation in equations(jaxpr) for value in equation.outvars),
        default=0,
    )


def _bytes(array: Any) -> int:
    # a token of effects has none
    return array.size * array.dtype.itemsize if hasattr(array, "dtype") else 0


def equations(jaxpr: Any) -> Iterator[Any]:
    """Those of a jaxpr and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


__all__ = ["Strategy", "equations", "members_side_by_side", "population"]
