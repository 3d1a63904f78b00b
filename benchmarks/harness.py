"""Measures contenders side by side: compilation apart from running, block by block, in turns.

A row names its contenders. Each is prepared (traced, compiled, called once), then all of them run blocks in turns,
A B C A B C ..., so that whatever else slows the machine slows them alike; ratios are taken block by block. A block is
as many calls as last about `min_seconds`, and waits once, at its end.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.cores import round_trip
from dfke_jax.core import HostMethod, Method
from dfke_jax.core.loop import _chunk, _fold, _init  # what `run` executes
from dfke_jax.core.mesh import device_mesh, replicate
from dfke_jax.core.types import Key
from dfke_jax.nn.conv import Implementation, convolution
from dfke_jax.nn.precision import Precision, compute_precision

SCHEMA = 1
Json = dict[str, Any]


class Program(NamedTuple):
    """A contender that is a `Method` of the package.

    Attributes:
      method: what is run.
      key: a key, or stacked keys for a population.
      units: units of work in one step of `method`.
      length: steps of `method` per call.
      convolution: implementation that its convolutions use.
      scanned: True runs the chunk that `dfke_jax.core.run` scans, False one jitted step outside any loop.
      elementary: a method whose step is one pass of what `method` repeats inside, for counting arithmetic; `method`
        itself by default. It must not contain a loop, whose body would be counted once.
      repeats: elementary steps in one step of `method`.
      spread: over all devices, as `dfke run` does it: samples are split where the method asks for it.
      precision: that networks compute in.
    """

    method: Method
    key: Key
    units: float
    length: int = 1
    convolution: Implementation = "auto"
    scanned: bool = True
    elementary: Method | None = None
    repeats: int = 1
    spread: bool = False
    precision: Precision = "float32"


class Split(NamedTuple):
    """A contender that leaves the device in every step, because its victim answers on the host.

    Attributes:
      method: of ``against(attack, oracle, host=True)``.
      key: a key.
      units: units of work in one step, which is one call.
    """

    method: HostMethod
    key: Key
    units: float


class Peer(NamedTuple):
    """A contender written in PyTorch.

    Attributes:
      build: returns a function of no arguments that does the work of one call. Imports PyTorch, which may be absent.
      units: units of work per call.
    """

    build: Callable[[], Callable[[], Any]]
    units: float


class Row(NamedTuple):
    """One line of the comparison.

    Attributes:
      unit: what the rate counts, per second.
      params: sizes and settings, all that makes two measurements comparable.
      contenders: name -> contender. The first one's elementary step, with plain convolutions, is the model's arithmetic.
      also: other units -> how many of them in one `unit`.
      blocks: how many blocks each contender runs, at least 7.
      counted: whether the arithmetic is counted; not where there is no elementary step without a loop.
    """

    unit: str
    params: Json
    contenders: Mapping[str, Program | Split | Peer]
    also: Mapping[str, float] = {}
    blocks: int = 11
    counted: bool = True


Rows = dict[str, Callable[[], Row]]


class Skipped(Exception):  # noqa: N818 - an outcome, not an error
    """A contender cannot run here, with the reason."""


@functools.partial(jax.jit, donate_argnums=2)
def _step(method: Method, key: Key, state: Any, start: jax.Array) -> Any:
    return method.step(_fold(key, start), state)


class Prepared:
    """A `Program`, compiled and called once.

    Attributes:
      units: units of work per call.
      state: after the calls so far.
      compile: seconds of tracing and lowering, of compiling, and of the first call.
      memory: bytes of the compiled program.
    """

    def __init__(self, program: Program):
        self.units = program.units * program.length
        self._mesh = device_mesh() if program.spread and jax.device_count() > 1 else None
        self._fixed = (program.method, program.key)
        if self._mesh:
            self._fixed = replicate(self._fixed, self._mesh)
        with self._devices():
            self.state = _init(self._fixed[0], _fold(self._fixed[1], np.uint32(2**32 - 1)))  # type: ignore[arg-type]
        self._count = 0
        jax.clear_caches()  # so that no contender profits from what another has traced
        jax.block_until_ready(self.state)
        began = time.perf_counter()
        with convolution(program.convolution), compute_precision(program.precision), self._devices():
            if program.scanned:
                lowered = _chunk.lower(*self._fixed, self.state, np.uint32(0), program.length)
            else:
                lowered = _step.lower(*self._fixed, self.state, np.uint32(0))
        lowered_at = time.perf_counter()
        self._compiled = lowered.compile()
        self.compile = {"trace_lower": lowered_at - began, "compile": time.perf_counter() - lowered_at}
        self.compile["first_call"] = self.run(1)
        self.memory = _memory(self._compiled)

    def _devices(self) -> Any:
        return jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()

    def run(self, calls: int) -> float:
        """Seconds of that many calls, each going on from the state of the previous one, with a key of its own."""
        began = time.perf_counter()
        metrics = None
        for _ in range(calls):
            self.state, metrics, *_ = self._compiled(*self._fixed, self.state, np.uint32(self._count))
            self._count += 1
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - began


class PreparedSplit:
    """A `Split`, compiled and called twice.

    Attributes:
      units: of work per call. state: after the calls so far.
      compile: seconds of the first call, which compiles both halves and the victim, and of the second.
    """

    memory = None

    def __init__(self, split: Split):
        self.units = split.units
        self._method, self._key, self._count = split.method, split.key, 0
        jax.clear_caches()
        self.state = split.method.init(_fold(split.key, np.uint32(2**32 - 1)))  # type: ignore[arg-type]
        self.compile = {"trace_lower": None, "compile": self.run(1), "first_call": self.run(1)}

    def run(self, calls: int) -> float:
        """Seconds of that many steps, each going on from the previous one, with a key of its own."""
        began = time.perf_counter()
        metrics = None
        for _ in range(calls):
            self.state, metrics = self._method.step(_fold(self._key, np.uint32(self._count)), self.state)  # type: ignore[arg-type]
            self._count += 1
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - began


class PreparedPeer:
    """A `Peer` with the number of threads, one or all, at which it is faster.

    Attributes:
      work: what `Peer.build` returned.
      threads: chosen. calibration: seconds per call by number of threads.
    """

    memory = None

    def __init__(self, peer: Peer):
        if importlib.util.find_spec("torch") is None:
            raise Skipped("PyTorch is not installed")
        import torch

        on_gpu = jax.default_backend() == "gpu"
        if on_gpu and not torch.cuda.is_available():
            raise Skipped("this PyTorch has no GPU, so it would not be a fair peer here")
        torch.set_flush_denormal(True)  # as XLA does
        if on_gpu:
            torch.backends.cudnn.benchmark = True
        self.units = peer.units
        self._torch, self._synchronise = torch, torch.cuda.synchronize if on_gpu else lambda: None
        self.threads = os.cpu_count() or 1
        self.work = peer.build()
        self.compile = {"trace_lower": None, "compile": None, "first_call": self.run(1)}
        self.calibration: dict[int, float] = {}
        for threads in sorted({1, self.threads}):
            self.threads = threads
            self.run(1)
            calls = max(1, min(50, int(0.1 / self.run(1))))
            self.calibration[threads] = min(self.run(calls) for _ in range(2)) / calls
        self.threads = min(self.calibration, key=lambda threads: self.calibration[threads])

    def run(self, calls: int) -> float:
        """Seconds of that many calls."""
        if self._torch.get_num_threads() != self.threads:
            self._torch.set_num_threads(self.threads)
        began = time.perf_counter()
        for _ in range(calls):
            self.work()
        self._synchronise()
        return time.perf_counter() - began


def costs(program: Program, implementation: Implementation) -> tuple[float, float]:
    """Arithmetic operations and bytes accessed per unit of work, from one compiled elementary step.

    On an accelerator operations are counted before it is compiled: XLA does not see into the libraries that it calls there.
    """
    one = program.elementary or program.method
    keys = program.key if program.elementary is None or not program.key.ndim else program.key[0]
    state = jax.eval_shape(one.init, keys)
    with convolution(implementation):
        lowered = _step.lower(one, keys, state, np.uint32(0))
        compiled = lowered.compile()
    found = _counted(compiled.cost_analysis())
    operations = found if jax.default_backend() == "cpu" else _counted(lowered.cost_analysis())
    factor = program.repeats / program.units
    return operations.get("flops", math.nan) * factor, found.get("bytes accessed", math.nan) * factor


def _counted(costs: Any) -> dict[str, float]:
    """Costs as one dictionary, whatever form this version of JAX gives them."""
    return (costs[0] if isinstance(costs, list) else costs) or {}


def measure(
    name: str,
    row: Row,
    *,
    suite: str = "full",
    blocks: int | None = None,
    min_seconds: float = 0.2,
    only: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> list[Json]:
    """Measures a row.

    Args:
      name: of the row.
      row: what to measure.
      suite: recorded as it is.
      blocks: per contender, instead of the row's own number.
      min_seconds: how long a block lasts at least, roughly.
      only: contenders to measure, beside the first, which always is; all by default.
      note: receives what is worth saying on the way.

    Returns:
      One record per contender, in the row's order; those that could not run have ``skipped`` in the place of numbers.
    """
    blocks = blocks or row.blocks
    if only:
        first, *others = row.contenders.items()
        row = row._replace(contenders=dict([first, *(item for item in others if item[0] in only)]))
    environment = describe_environment()
    ready: dict[str, Prepared | PreparedSplit | PreparedPeer] = {}
    skipped: dict[str, str] = {}
    for contender, work in row.contenders.items():
        note(f"{name}: preparing {contender}")
        try:
            ready[contender] = _prepared(work)
        except Skipped as reason:
            skipped[contender] = str(reason)
            note(f"{name}: {contender} skipped: {reason}")
    calls = {contender: _calls_per_block(work, min_seconds) for contender, work in ready.items()}
    rates: dict[str, list[float]] = {contender: [] for contender in ready}
    trips: list[float] = []
    for block in range(blocks):
        note(f"{name}: block {block + 1} of {blocks}")
        for contender, work in ready.items():
            time.sleep(0.005)  # threads of the previous contender stop spinning
            rates[contender].append(work.units * calls[contender] / work.run(calls[contender]))
        if (trip := round_trip()) is not None:
            trips.append(trip)
    environment["core_round_trip"] = summary(trips) | {"blocks": trips} if trips else None
    note(f"{name}: counting arithmetic")
    first = next(work for work in row.contenders.values() if isinstance(work, Program))
    counts: dict[tuple, tuple[float, float]] = {}

    def counted(work: Program, implementation: Implementation) -> tuple[float, float]:
        same = (id(work.elementary or work.method), implementation, work.units / work.repeats)
        if same not in counts:
            counts[same] = costs(work, implementation)
        return counts[same]

    plain = counted(first, "lax") if row.counted else (math.nan, math.nan)

    records = []
    for contender, work in row.contenders.items():
        record: Json = {"schema": SCHEMA, "name": name, "suite": suite, "contender": contender}
        record |= {"params": row.params, "unit": row.unit}
        if contender in skipped:
            records.append({**record, "skipped": skipped[contender], **environment})
            continue
        prepared, own = ready[contender], rates[contender]
        rate = summary(own)
        executed = None
        if isinstance(work, Program) and row.counted:
            executed = plain if work.convolution == "lax" else counted(work, work.convolution)
        if isinstance(work, Program):
            record |= {
                "steps_per_call": work.length * work.repeats,
                "convolution": work.convolution,
                "precision": work.precision,
            }
            record |= {"devices": jax.device_count() if work.spread else 1}
        records.append(
            record
            | {
                "rate": rate,
                "other_rates": {unit: rate["median"] * factor for unit, factor in row.also.items()},
                "blocks": own,
                "calls_per_block": calls[contender],
                "compile": prepared.compile,
                "flops": {
                    "model_per_unit": _number(plain[0]),
                    "model_per_second": _number(plain[0] * rate["median"]),
                    "executed_per_unit": _number(executed[0]) if executed else None,
                    "executed_per_second": _number(executed[0] * rate["median"]) if executed else None,
                },
                "bytes": {"accessed_per_unit": _number(executed[1]) if executed else None},
                "memory": prepared.memory,
                "ratio_to": {
                    other: summary(np.divide(own, theirs)) for other, theirs in rates.items() if other != contender
                },
                "torch": {"threads": prepared.threads, "seconds_per_call": prepared.calibration}
                if isinstance(prepared, PreparedPeer)
                else None,
            }
            | environment
        )
    return records


def _prepared(work: Program | Split | Peer) -> Prepared | PreparedSplit | PreparedPeer:
    if isinstance(work, Program):
        return Prepared(work)
    return PreparedSplit(work) if isinstance(work, Split) else PreparedPeer(work)


def _calls_per_block(work: Prepared | PreparedSplit | PreparedPeer, min_seconds: float) -> int:
    calls, seconds = 1, work.run(1)
    while seconds < 0.8 * min_seconds:
        calls = min(max(calls + 1, math.ceil(calls * min_seconds / max(seconds, 1e-6))), 16 * calls)
        seconds = work.run(calls)
    return calls


def summary(values: Any) -> Json:
    """Median, 10 % and 90 % quantile, and how many."""
    low, middle, high = (float(value) for value in np.quantile(np.asarray(values, np.float64), (0.1, 0.5, 0.9)))
    return {"median": middle, "p10": low, "p90": high, "n": len(values)}


def _memory(compiled: Any) -> Json | None:
    found = compiled.memory_analysis()
    if found is None:
        return None
    sizes = {part: getattr(found, f"{part}_size_in_bytes") for part in ("argument", "output", "temp", "alias")}
    return {**sizes, "total": sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"]}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def describe_environment() -> Json:
    """Versions, device, cores, load and revision: what a number depends on besides the code."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("dfke-jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    return {
        "versions": versions,
        "device": {"platform": device.platform, "kind": kind, "count": jax.device_count()},
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "revision": _revision(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def _revision() -> str | None:
    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/dfke_jax", ":/benchmarks")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def append(path: str | Path, records: Sequence[Json]) -> None:
    """Adds one line per record to a file, which is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for record in records:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def read(path: str | Path) -> list[Json]:
    """Records of a file.

    Raises:
      ValueError: for a line that is not a record of this schema, with its number.
    """
    records = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ValueError(f"{path}, line {number} is not a measurement of schema {SCHEMA}")
        records.append(record)
    return records
