"""The loop that runs any method: compiled chunks, progress, a guard, checkpoints, interruption and
resumption.
"""

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.checkpoint import Checkpoints, alone
from dfke_jax.core.errors import BudgetError, CheckpointError, InputError, Interrupted
from dfke_jax.core.guard import Guard, Watch, holds_nan, holds_nan_alone, name_spoilt
from dfke_jax.core.method import HostAttack, HostMethod, Method, Solution, check_arguments
from dfke_jax.core.progress import progress_bar
from dfke_jax.core.tracking import Tracker
from dfke_jax.core.types import Key, Metrics, PyTree


class Run(NamedTuple):
    """What `run` returns.

    Attributes:
      state: the method's last state.
      metrics: name -> array (steps,) of what every step *of this call* reported, with a trailing
        axis M for populations; empty when a resumed run was complete already.
      steps: how many steps the run has taken in all, those before a resumption included.
      seconds: of stepping in this call, the first chunk's compilation excluded.
      compile_seconds: of lowering and compiling.
    """

    state: PyTree
    metrics: dict[str, np.ndarray]
    steps: int
    seconds: float
    compile_seconds: float


def run(
    method: Method | HostMethod,
    key: Key,
    steps: int,
    *,
    chunk: int | None = None,
    state: PyTree | None = None,
    checkpoints: Checkpoints | None = None,
    every: int = 1,
    resume: bool = False,
    trackers: Sequence[Tracker] = (),
    callback: Callable[[int, PyTree, Metrics], None] | None = None,
    stop: Callable[[dict[str, np.ndarray]], bool] | None = None,
    guard: Guard | None = None,
    progress: str | bool | None = None,
    rows_per_step: int = 0,
    unit: str = "steps",
) -> Run:
    """Runs a method for a number of steps.

    Steps are scanned in compiled chunks; nothing leaves the device inside one. Step *t* gets the
    key ``fold_in(key, t)`` and chunks always begin at multiples of `chunk`, so a run that is
    interrupted and resumed executes the same programs on the same numbers as one that is not.

    Args:
      method: what to run.
      key: a typed key (``jax.random.key``), or stacked keys (M,) for a `population`.
      steps: total number of steps, >= 1.
      chunk: steps per compiled call; a tenth of `steps` by default, at most 500.
      state: where to start instead of ``method.init(fold_in(key, 2³² − 1))``. It is copied and
        stays the caller's.
      checkpoints: where to save the state, after every `every` chunks, at the end, and when
        interrupted. One run at a time may use a directory.
      resume: continue from the newest checkpoint if there is one, whatever `state` is. With `stop`,
        a run that it has ended stays ended.
      trackers: receive the mean of each metric over every chunk.
      callback: called after every chunk with (steps taken, state, that chunk's metrics); must not
        keep the state.
      stop: called after every chunk with its metrics; True ends the run early, and the checkpoint
        says so.
      guard: when a generator counts as collapsed; by default `Guard()`, which warns.
      progress: title of a progress bar, None or False for none, True for one called after its unit.
        It shows `unit` per second, `rows_per_step` of them a step.

    Returns:
      A `Run`.

    Raises:
      NonFiniteError: a metric is NaN or infinite, or an array of the state holds NaN after a chunk;
        names the step and the metrics (all that failed at the first such step, with what they were
        before) or the array. Infinity is allowed in the state, where it stands for "not found yet".
      CollapseError: see `Guard`.
      CheckpointError: another process runs with these checkpoints, or they are of another
        configuration or damaged.
      Interrupted: Ctrl-C or SIGTERM; the state after the current chunk is saved first if there are
        checkpoints.
      InputError: `steps` or `chunk` below one, a key that is not typed, a bare function that the
        method holds.
    """
    _check_key(key)
    if isinstance(method, Method):
        check_arguments(method, "method")
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    chunk = min(steps, max(1, min(500, steps // 10)) if chunk is None else chunk)
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    with (
        alone(checkpoints.directory / "run", wait=False)
        if checkpoints
        else contextlib.nullcontext()
    ):
        return _run(
            method, key, steps, chunk, state, checkpoints, every, resume, trackers, callback, stop,
            guard or Guard(),
            (progress, rows_per_step, unit),
        )  # fmt: skip


def _run(
    method: Method | HostMethod,
    key: Key,
    steps: int,
    chunk: int,
    state: PyTree | None,
    checkpoints: Checkpoints | None,
    every: int,
    resume: bool,
    trackers: Sequence[Tracker],
    callback: Callable[[int, PyTree, Metrics], None] | None,
    stop: Callable[[dict[str, np.ndarray]], bool] | None,
    guard: Guard,
    bar: tuple[str | bool | None, int, str],
) -> Run:
    start, stopped = 0, False
    init_key = _fold(key, jnp.uint32(2**32 - 1))
    if resume and checkpoints is not None and checkpoints.latest is not None:
        start = checkpoints.latest
        if start > steps:
            raise CheckpointError(
                f"{checkpoints.directory} holds the state after {start} steps, beyond the {steps} "
                "asked for"
            )
        state = checkpoints.restore(
            jax.eval_shape(method.init, init_key) if state is None else state
        )
        stopped = stop is not None and bool(checkpoints.facts(start).get("stopped"))
    elif state is None:
        state = method.init(init_key) if isinstance(method, HostMethod) else _init(method, init_key)
    else:
        state = jax.tree.map(_copy, state)  # the chunks' is donated
    for tracker in trackers:
        tracker.rewind(start)

    execute: Any = _host_chunk if isinstance(method, HostMethod) else _Compiled()
    history: list[dict[str, np.ndarray]] = []
    watch = Watch(guard, checkpoints)
    done = steps if stopped else start
    began = time.perf_counter()
    title, rows_per_step, unit = bar
    with (
        _interruptions() as interrupted,
        progress_bar(title, steps, start, rows_per_step or 1, unit) as advance,
    ):
        while done < steps:
            length = min(chunk - done % chunk, steps - done)
            state, stacked, spoilt = execute(method, key, state, done, length)
            stacked = {name: np.asarray(value) for name, value in stacked.items()}
            watch.look(stacked, done)
            done += length
            if spoilt:
                name_spoilt(state, done, checkpoints)
            history.append(stacked)
            means = {name: value.mean(0) for name, value in stacked.items()}
            for tracker in trackers:
                tracker.log(done, _scalars(means))
            if callback is not None:
                callback(done, state, means)
            advance(length, means)
            stopped = done < steps and stop is not None and bool(stop(stacked))
            ends = done >= steps or stopped
            if checkpoints is not None and (ends or interrupted() or (done // chunk) % every == 0):
                checkpoints.save(done, state, metadata={"stopped": True} if stopped else None)
            if interrupted():  # in the last chunk too: whatever follows this run must not begin
                where = (
                    f"saved in {checkpoints.directory}; run the same command with --resume"
                    if checkpoints
                    else "not saved"
                )
                raise Interrupted(f"stopped after step {done} of {steps}; the state is {where}")
            if ends:
                break
    compile_seconds = getattr(execute, "seconds", 0.0)
    metrics = (
        {name: np.concatenate([h[name] for h in history]) for name in history[0]} if history else {}
    )
    taken = done if history else start
    return Run(
        state, metrics, taken, time.perf_counter() - began - compile_seconds, compile_seconds
    )


def run_host(attack: HostAttack, oracle: Callable[[np.ndarray], Any], seed: int) -> Solution:
    """Runs an attack that is written in direct style.

    Args:
      attack: what to run.
      oracle: rows (B, ...) -> answers, a pytree with leading axis B. A `Metered` counts, keeps to a
        budget and remembers: run again with the same seed and the same ledger, the attack goes
        through the same questions and pays for none of those that were answered. Without one
        nothing is counted but `Solution.queries`.
      seed: whole number >= 0 of ``numpy.random.default_rng``.

    Returns:
      What the attack returned. Where the budget ended before it did, what it had kept, with
      ``complete=False``.

    Raises:
      Interrupted: Ctrl-C or SIGTERM, between two questions: what is under way is answered first. A
        second one interrupts at once.
      InputError: for a seed that is none, or rows that are no array of numbers with B >= 1.
      Whatever else attack or oracle raise.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"a seed is a whole number of at least 0, got {seed!r}")
    with _interruptions() as interrupted:
        ask = _Asking(oracle, interrupted)
        try:
            solution = attack.solve(np.random.default_rng(int(seed)), ask)
        except BudgetError:
            solution = Solution(ask.kept, complete=False)
        ask.check()  # an interruption after the last question: whatever follows must not begin
    return solution._replace(queries=ask.queries)


class _Asking:
    """The `Ask` of `run_host`."""

    def __init__(self, oracle: Callable[[np.ndarray], Any], interrupted: Callable[[], bool]):
        self.oracle, self.interrupted = oracle, interrupted
        self.kept: Any = None
        self.queries = 0

    def __call__(self, rows: np.ndarray) -> Any:
        rows = np.asarray(rows)
        if rows.ndim < 1 or not len(rows) or rows.dtype.kind not in "biuf":
            raise InputError(
                f"rows must be numbers (B, ...) with B >= 1, got shape {rows.shape} of {rows.dtype}"
            )
        self.check()
        answers = jax.device_get(self.oracle(rows))
        self.queries += len(rows)
        self.check()
        return answers

    def keep(self, found: Any) -> None:
        self.kept = found

    def phase(self, name: str) -> contextlib.AbstractContextManager:
        phase = getattr(self.oracle, "phase", None)
        return contextlib.nullcontext() if phase is None else phase(name)

    def check(self) -> None:
        if self.interrupted():
            raise Interrupted(
                f"stopped after {self.queries} rows; what a ledger holds of them is not paid "
                "again: run the same attack with the same seed and ledger"
            )


def _check_key(key: Any) -> None:
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        what = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise InputError(
            f"a run needs a typed key, jax.random.key(0), not {what}: jax.random.PRNGKey gives "
            "bare numbers, which jax.random.wrap_key_data turns into one"
        )


def _copy(leaf: Any) -> jax.Array:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else jnp.array(leaf)


@jax.jit
def _init(method: Method, key: Key) -> PyTree:
    return method.init(key)


def _fold(key: Key, data: jax.Array) -> Key:
    fold = jax.random.fold_in
    return jax.vmap(fold, (0, None))(key, data) if key.ndim else fold(key, data)


@functools.partial(jax.jit, static_argnums=4, donate_argnums=2)
def _chunk(
    method: Method, key: Key, state: PyTree, start: jax.Array, length: int
) -> tuple[PyTree, Metrics, jax.Array]:
    """The state after so many steps, what every step reported, and whether the state holds NaN."""

    def body(state: PyTree, step: jax.Array) -> tuple[PyTree, Metrics]:
        return method.step(_fold(key, step), state)

    state, metrics = jax.lax.scan(body, state, start + jnp.arange(length, dtype=jnp.uint32))
    return state, metrics, holds_nan(state)


class _Compiled:
    """Runs chunks and tells the time of compiling from that of running."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self, method: Method, key: Key, state: PyTree, start: int, length: int):
        position = jnp.uint32(start)
        began = time.perf_counter()
        before = _chunk._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
        state, metrics, spoilt = _chunk(method, key, state, position, length)
        compiled = _chunk._cache_size() > before  # pyright: ignore[reportAttributeAccessIssue]
        if compiled:  # dispatch returns once the program is compiled; what follows is running
            self.seconds += time.perf_counter() - began
        return state, jax.block_until_ready(metrics), spoilt


def _host_chunk(method: HostMethod, key: Key, state: PyTree, start: int, length: int):
    history = []
    for step in range(start, start + length):
        state, metrics = method.step(_fold(key, jnp.uint32(step)), state)
        history.append(metrics)
    stacked = {name: np.stack([np.asarray(m[name]) for m in history]) for name in history[0]}
    return (
        state,
        stacked,
        holds_nan_alone([leaf for leaf in jax.tree.leaves(state) if hasattr(leaf, "dtype")]),
    )


def _scalars(metrics: Metrics) -> dict[str, float]:
    flat = {}
    for name, value in metrics.items():
        value = np.asarray(value)
        flat |= (
            {name: float(value)}
            if value.ndim == 0
            else {f"{name}/{i}": float(v) for i, v in enumerate(value.ravel())}
        )
    return flat


@contextlib.contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second one interrupts at once."""
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, frame) -> None:
        if seen.is_set():
            raise KeyboardInterrupt
        seen.set()

    for number in previous:
        signal.signal(number, handler)
    try:
        yield seen.is_set
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


__all__ = ["Run", "run", "run_host"]
