"""What every method and every attack is made of.

A method is two pure functions; an attack is three, and never sees its victim. Everything that a
method carries from one step to the next lives in its state, a pytree, so that compiling, scanning,
running many at once, sharding, saving and resuming are each written once, for all of them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key, Metrics, PyTree


class Method(NamedTuple):
    """A training or synthesis procedure as two pure functions.

    Both are `jax.tree_util.Partial`, so that a `Method` is a pytree: what its functions hold on to
    (a teacher's parameters, a pool) travels into a compiled program as an argument and is never
    baked into it.

    Attributes:
      init: ``state = init(key)``.
      step: ``state, metrics = step(key, state)``; `metrics` maps names to scalars. The loop hands
        step *t* the key ``fold_in(key, t)``, so a resumed run draws what the uninterrupted one
        would have drawn.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Metrics]]


class Attack(NamedTuple):
    """A procedure that learns from answers, written without any access to whoever gives them.

    `ask` and `tell` of one iteration receive the same key: random directions and latents are drawn
    again in `tell` rather than stored.

    Attributes:
      init: ``state = init(key)``.
      ask: ``state, rows = ask(key, state)``; `rows` (B, H, W, C) go to the victim.
      tell: ``state, metrics = tell(key, state, rows, answers)``.
    """

    init: Callable[[Key], PyTree]
    ask: Callable[[Key, PyTree], tuple[PyTree, Array]]
    tell: Callable[[Key, PyTree, Array, PyTree], tuple[PyTree, Metrics]]


class HostMethod(NamedTuple):
    """A method whose step leaves the device in the middle, because its victim answers on the host.

    Same calling convention as `Method`; `run` steps through it from Python instead of scanning it.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Metrics]]


class Ask(Protocol):
    """What a `HostAttack` asks with: ``answers = ask(rows)``."""

    def __call__(self, rows: np.ndarray) -> Any:
        """Answers (any pytree of NumPy arrays with leading axis B) of rows (B, ...), B >= 1.

        Raises:
          BudgetError: when they are more than the budget has left; nothing was sent.
        """
        ...

    def keep(self, found: Any) -> None:
        """Says what has been found so far: it is the solution if the budget ends before the attack
        does.
        """
        ...

    def phase(self, name: str) -> AbstractContextManager:
        """A ``with`` block whose rows are counted under a name as well, where the oracle does so
        (`Metered.phase`).
        """
        ...


class Solution(NamedTuple):
    """What a `HostAttack` has found.

    Attributes:
      found: the model, in a form of the attack's own; None where nothing was found.
      complete: whether the attack came to its end. If not, the budget was spent, and `found` is
        what it had kept.
      queries: rows that it asked, those included that a ledger answered for nothing. `run_host`
        counts them.
    """

    found: Any
    complete: bool = True
    queries: int = 0


class HostAttack(NamedTuple):
    """An attack in direct style, for what is solved on the host in float64 and asks by what it was
    answered.

    There is no state and no step: one function asks, computes and asks again, any number of rows at
    a time, and returns. It draws from `rng` alone, so that the same seed and the same answers make
    the same questions; a run that ended early is therefore resumed by running it again through the
    same ledger, which answers what was paid for.

    Attributes:
      solve: ``solution = solve(rng, ask)``; `rng` is a `numpy.random.Generator`, `ask` an `Ask`.
    """

    solve: Callable[[np.random.Generator, Ask], Solution]


def method(init: Callable, step: Callable, *args: Any) -> Method:
    """`Method` from two functions that share leading arguments: ``init(*args, key)`` and
    ``step(*args, key, state)``.

    Args:
      init, step: module-level functions. Use the same function objects for every instance: their
        identity is part of the compiled program's key, so fresh lambdas would compile again.
      *args: pytrees (networks' parameters, data) or `static` values.
    """
    return Method(Partial(init, *args), Partial(step, *args))


class Steps(Protocol):
    """A `dfke_jax.core.record` that is a method; see `Method`."""

    def init(self, key: Key) -> PyTree:
        """The first state."""
        ...

    def step(self, key: Key, state: PyTree) -> tuple[PyTree, Metrics]:
        """The next state, and metrics."""
        ...


class Asks(Protocol):
    """A `dfke_jax.core.record` that is an attack; see `Attack`."""

    def init(self, key: Key) -> PyTree:
        """The first state."""
        ...

    def ask(self, key: Key, state: PyTree) -> tuple[PyTree, Array]:
        """The state, and the images to ask."""
        ...

    def tell(self, key: Key, state: PyTree, rows: Array, answers: PyTree) -> tuple[PyTree, Metrics]:
        """The next state, and metrics."""
        ...


def as_method(record: Steps) -> Method:
    """The `Method` whose functions are those of a record.

    They are the class's own functions over the record, not bound methods: a function's identity is
    part of the compiled program's key, and a bound method is a new object every time.
    """
    kind = type(record)
    return Method(Partial(kind.init, record), Partial(kind.step, record))


def as_attack(record: Asks) -> Attack:
    """The `Attack` whose functions are those of a record; see `as_method`."""
    kind = type(record)
    return Attack(Partial(kind.init, record), Partial(kind.ask, record), Partial(kind.tell, record))


@jax.tree_util.register_static
class Static:
    """Wraps a hashable value (a module, an optimiser, a shape) so that it can stand among pytree
    arguments.

    Two `Static`s are equal when their values are, which is what decides whether a program is
    compiled again.
    """

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"Static({self.value!r})"


def check_arguments(tree: PyTree, what: str) -> None:
    """Refuses a bare function among what becomes the arguments of a compiled program.

    Args:
      tree: a transformation, a method, ...
      what: how the message calls it.

    Raises:
      InputError: for a function that is no `jax.tree_util.Partial`.
    """
    for leaf in jax.tree.leaves(tree):
        if callable(leaf) and not hasattr(leaf, "dtype"):
            name = getattr(leaf, "__qualname__", repr(leaf))
            raise InputError(
                f"{what}: {name} is a bare function, which no compiled program takes as an "
                "argument; give a jax.tree_util.Partial of it, or call what makes one "
                "(dfke_jax.data.identity(), not identity)"
            )


def _fused_step(
    attack: Attack, oracle: Callable, key: Key, state: PyTree
) -> tuple[PyTree, Metrics]:
    state, rows = attack.ask(key, state)
    answers = jax.lax.stop_gradient(oracle(rows))
    return attack.tell(key, state, rows, answers)


@jax.jit
def _ask(attack: Attack, key: Key, state: PyTree) -> tuple[PyTree, Array]:
    return attack.ask(key, state)


@jax.jit
def _tell(
    attack: Attack, key: Key, state: PyTree, rows: Array, answers: PyTree
) -> tuple[PyTree, Metrics]:
    return attack.tell(key, state, rows, answers)


def answers_on_host(model: Any, host: bool | None = None) -> bool:
    """Whether a model answers on the host: what `host` says, else its own attribute ``on_host``,
    else not.
    """
    return bool(getattr(model, "on_host", False)) if host is None else host


def against(
    attack: Attack, oracle: Callable[[Array], Any], *, host: bool | None = None
) -> Method | HostMethod:
    """Closes the loop between an attack and whoever answers it.

    Args:
      attack: the attack.
      oracle: rows (B, H, W, C) -> answers, any pytree with leading axis B. A traceable oracle
        should be a `jax.tree_util.Partial` or another callable pytree (a `Classifier`), so that its
        parameters are arguments.
      host: whether `oracle` must run on the host (a PyTorch module, an HTTP endpoint); those of the
        package know it of themselves, a function must say so. Then ask and tell are two
        compiled halves and the oracle is called once between them, with a NumPy array.

    Returns:
      A `Method` in which ask, answer and tell are one program, or a `HostMethod`. Both produce the
      same states from the same keys when the oracle gives the same answers.
    """
    if not answers_on_host(oracle, host):
        # the oracle is a pytree of its own (Partial, Classifier)
        if not jax.tree_util.all_leaves([oracle]):
            return Method(attack.init, Partial(_fused_step, attack, oracle))
        return Method(attack.init, Partial(_fused_step, attack, Partial(oracle)))

    def step(key: Key, state: PyTree) -> tuple[PyTree, Metrics]:
        state, rows = _ask(attack, key, state)
        answers = oracle(jax.device_get(rows))
        return _tell(attack, key, state, rows, answers)

    return HostMethod(attack.init, step)


__all__ = [
    "Ask",
    "Attack",
    "HostAttack",
    "HostMethod",
    "Method",
    "Solution",
    "Static",
    "against",
    "answers_on_host",
    "as_attack",
    "as_method",
    "check_arguments",
    "method",
]
