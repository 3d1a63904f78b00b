"""Saving and restoring, with orbax behind two functions and a directory of numbered states.

A checkpoint carries a fingerprint of the configuration that wrote it, and is refused by any other.
Writing is atomic: a process killed at any moment leaves either the whole checkpoint or none. It
also carries a checksum of every array, and which jax and which code wrote it: what was changed on
the disk since is refused.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import CheckpointError, DamagedCheckpointError, InputError
from dfke_jax.core.mesh import default_sharding
from dfke_jax.core.revision import writer
from dfke_jax.core.types import PyTree

_FREE_BYTES = 64 * 2**20


def _orbax() -> Any:
    """Orbax, imported when a checkpoint is first written or read."""
    from orbax.checkpoint import v1

    return v1


def fingerprint(config: Any) -> str:
    """A short hash of any JSON-able configuration (dataclasses become dicts, tuples become lists)."""
    text = json.dumps(config, sort_keys=True, default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _jsonable(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a configuration")


def cache_directory() -> Path:
    """Where compiled programs and trained teachers are kept between runs: DFKE_CACHE_DIR or
    ``~/.cache/dfke_jax``.
    """
    return Path(os.environ.get("DFKE_CACHE_DIR") or "~/.cache/dfke_jax").expanduser()


def write_whole(path: Path, text: str) -> Path:
    """Writes a file whole or not at all, whenever the process is killed; returns its path."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def writable_directory(path: str | os.PathLike, needed_bytes: int = _FREE_BYTES) -> Path:
    """Creates a directory and makes sure, before any long work, that something can be written into
    it.

    Raises:
      CheckpointError: when it cannot be created or written to, or the disk has less than
        `needed_bytes` left.
    """
    path = Path(path).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {path}: {error.strerror or error}; choose another directory"
        ) from error
    if free < needed_bytes:
        raise CheckpointError(
            f"the disk of {path} has {free / 2**20:.0f} MiB left and this needs about "
            f"{needed_bytes / 2**20:.0f} MiB"
        )
    return path


@contextlib.contextmanager
def alone(path: str | os.PathLike, *, wait: bool = True) -> Iterator[None]:
    """Keeps other processes of this machine out of a directory as long as the block lasts.

    The lock is a file beside the directory, ``PATH.lock``, and ends with the process that holds it,
    however that ends. Where files cannot be locked (Windows, some network file systems) nobody is
    kept out.

    Args:
      path: the directory.
      wait: whether to wait for a process that holds it.

    Raises:
      CheckpointError: without `wait`, when another process holds it; the message names the process.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(path)
    with Path(f"{path}.lock").open("a+") as lock:  # not "w": the holder's name must stay
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.seek(0)
            raise CheckpointError(
                f"{lock.read().strip() or 'another process'} is at work in {path.parent}; wait "
                "until it has ended, or choose another directory"
            ) from None
        except OSError:
            pass
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def save(
    path: str | os.PathLike, tree: PyTree, *, config: str = "", metadata: dict | None = None
) -> None:
    """Writes a pytree of arrays (typed keys included), replacing what was there.

    Args:
      path: directory to write.
      tree: the state.
      config: fingerprint of the configuration that it belongs to.
      metadata: JSON-able facts to keep with it.

    Raises:
      CheckpointError: when the disk is full or the directory not writable.
    """
    ocp = _orbax()
    path = Path(path).absolute()
    writable_directory(path.parent, needed_bytes=0)
    try:
        ocp.save(
            path,
            # orbax refuses arrays without elements
            {"leaves": [leaf for leaf in _leaves(tree) if leaf.size]},
            overwrite=True,
            custom_metadata={
                "config": config,
                "leaves": _described(tree),
                "checksums": _checksums(_leaves(tree)),
                "written_by": writer(),
                **(metadata or {}),
            },
        )
    except (OSError, ValueError) as error:  # the latter is how a full disk reaches us
        raise CheckpointError(f"could not write the checkpoint {path}: {error}") from error


def restore(path: str | os.PathLike, like: PyTree, *, config: str = "") -> PyTree:
    """Reads a pytree written by `save`.

    Args:
      path: its directory.
      like: a tree of the same structure whose leaves give shape, dtype and (if they are arrays on
        devices) sharding; `jax.eval_shape` of the function that made it will do.
      config: the fingerprint that the checkpoint must carry.

    Raises:
      CheckpointError: when there is none, or it belongs to another configuration or structure.
      DamagedCheckpointError: when it cannot be read, or an array is not what was written (its
        CRC-32 differs).
    """
    ocp = _orbax()

    path = Path(path).absolute()
    found = _facts(path)
    who = _written_by(found)
    if found.get("config", "") != config:
        raise CheckpointError(
            f"the checkpoint at {path} was written by another configuration (it carries "
            f"{found.get('config')!r}, this run is {config!r}){who}; use another output directory, "
            "or the old settings"
        )
    stored, wanted = found["leaves"], _described(like)
    if stored != wanted:
        differs = next(
            (f"{a} there, {b} here" for a, b in zip(stored, wanted, strict=False) if a != b), ""
        )
        raise CheckpointError(
            f"the checkpoint at {path} does not fit this run: it has {len(stored)} arrays, this "
            f"run's state {len(wanted)}{differs and '; first difference: '}{differs}{who}"
        )
    default = default_sharding()
    abstract = [
        jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default
        )
        for leaf in (_array(leaf) for leaf in _leaves(like))
    ]
    try:
        loaded = iter(
            ocp.load(path, {"leaves": [leaf for leaf in abstract if leaf.size]})["leaves"]
        )
    except Exception as error:  # of many kinds
        raise DamagedCheckpointError(
            f"the checkpoint at {path} is damaged: {error}{who}"
        ) from error
    leaves = [next(loaded) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype) for leaf in abstract]
    for place, (old, now) in enumerate(
        zip(found.get("checksums", []), _checksums(leaves), strict=False)
    ):
        if None not in (old, now) and old != now:
            raise DamagedCheckpointError(
                f"the checkpoint at {path} is damaged: array {place} of {len(leaves)} "
                f"({wanted[place]}) is not what was written (checksum {now}, not {old}){who}"
            )
    places = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(like)]
    # Committed to the first device, what has no place of its own could not move onto a mesh.
    leaves = [
        jax.device_put(jax.device_get(leaf)) if place is None else leaf
        for leaf, place in zip(leaves, places, strict=True)
    ]
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [_typed(*pair) for pair in zip(leaves, jax.tree.leaves(like), strict=True)],
    )


def _facts(path: Path) -> dict[str, Any]:
    """What `save` wrote beside the arrays."""
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        found = _orbax().metadata(path).custom_metadata or {}
        found = {**found, "leaves": list(found["leaves"])}
    except Exception as error:  # orbax raises many kinds for a damaged directory
        raise DamagedCheckpointError(
            f"the checkpoint at {path} cannot be read: {error!r}"
        ) from error
    return found


def _written_by(found: dict[str, Any]) -> str:
    """In words, where it was not what runs now."""
    old, now = found.get("written_by"), writer()
    if not isinstance(old, dict) or old == now:
        return ""
    said = ", ".join(f"{name} {value}" for name, value in old.items())
    return (
        f"; it was written by {said}, and this is "
        f"{', '.join(f'{name} {value}' for name, value in now.items())}"
    )


def _checksums(leaves: list) -> list[str | None]:
    """CRC-32 of the bytes of every array; None for one that other hosts hold parts of."""
    return [
        None
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        else f"{zlib.crc32(np.asarray(leaf).tobytes()):08x}"
        for leaf in leaves
    ]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(tree: PyTree) -> list[str]:
    """Type and shape of every leaf: what a reader must ask for, since orbax casts without a word."""
    return [f"{leaf.dtype}{list(leaf.shape)}" for leaf in map(_array, jax.tree.leaves(tree))]


def _leaves(tree: PyTree) -> list:
    """Leaves with typed keys as their data, so that any reader can open the checkpoint."""
    return [
        (
            jax.eval_shape(jax.random.key_data, leaf)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else jax.random.key_data(leaf)
        )
        if _is_key(leaf)
        else leaf
        for leaf in map(_array, jax.tree.leaves(tree))
    ]


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)


def _generator(key: Any) -> str:
    """Name of the generator of a key, or of what only has the shape of one."""
    seen: list = []
    jax.eval_shape(lambda key: seen.append(jax.random.key_impl(key)), key)
    return seen[0]


def _typed(leaf: Any, like: Any) -> Any:
    like = _array(like)
    return jax.random.wrap_key_data(leaf, impl=_generator(like)) if _is_key(like) else leaf


class Checkpoints:
    """Numbered states of one run in a directory, the newest few kept.

    Args:
      directory: where; created.
      config: fingerprint of the run's configuration.
      keep: how many to keep.
    """

    def __init__(self, directory: str | os.PathLike, *, config: str = "", keep: int = 2):
        self.directory = writable_directory(directory)
        self.config = config
        if keep < 1:
            raise InputError(f"keep must be at least 1, got {keep}")
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        return sorted(
            int(path.name)
            for path in self.directory.iterdir()
            if path.is_dir() and path.name.isdigit()
        )

    @property
    def latest(self) -> int | None:
        """The newest saved step, or None."""
        return (self.steps() or [None])[-1]

    def save(self, step: int, tree: PyTree, *, metadata: dict | None = None) -> None:
        """Saves the state after `step` steps, with JSON-able facts, and drops the oldest beyond
        `keep`.
        """
        save(self.directory / str(step), tree, config=self.config, metadata=metadata)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.directory / str(old), ignore_errors=True)

    def facts(self, step: int) -> dict[str, Any]:
        """What is kept beside the state after `step` steps: its metadata and ``written_by``.

        Raises:
          CheckpointError: when there is none. DamagedCheckpointError: when it cannot be read.
        """
        return _facts(self.directory / str(step))

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """The state after `step` steps, the newest by default.

        Raises:
          CheckpointError: when there is none, or it belongs to another configuration or structure.
          DamagedCheckpointError: when it is damaged. Nothing older is taken without a word: the
            message names the newest sound state and how to go on from there.
        """
        step = self.latest if step is None else step
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self.directory}")
        path = self.directory / str(step)
        try:
            return restore(path, like, config=self.config)
        except DamagedCheckpointError as error:
            older = self._sound(like, step)
            then = f"remove {path} to go on from the sound state after step {older}"
            if older is None:
                then = f"no older sound state is kept; remove {path} to begin anew"
            raise DamagedCheckpointError(f"{error}; {then}") from error

    def _sound(self, like: PyTree, before: int) -> int | None:
        """The newest step before another whose state can be restored."""
        for step in reversed([step for step in self.steps() if step < before]):
            with contextlib.suppress(CheckpointError):
                restore(self.directory / str(step), like, config=self.config)
                return step
        return None

    def clear(self) -> None:
        """Removes every saved state."""
        for step in self.steps():
            shutil.rmtree(self.directory / str(step), ignore_errors=True)


__all__ = [
    "Checkpoints",
    "alone",
    "cache_directory",
    "fingerprint",
    "restore",
    "save",
    "writable_directory",
    "write_whole",
]
