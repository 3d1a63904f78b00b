"""Values that a run keeps in its directory, so that it makes them once, however often it is stopped."""

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dfke_jax.core.errors import CheckpointError


def once(path: Path, decides: str, make: Callable[[], Any]) -> Any:
    """What `make()` returns: read, where it was made before, else made and written, whole or not at all.

    A value is made of dictionaries (with texts for keys), sequences, numbers, texts, None and NumPy arrays.
    What comes back is what was written: numbers and arrays to the bit, sequences as lists. That is so
    for the process that made it as well.

    Args:
      path: of the file, an ``.npz``.
      decides: fingerprint of what the value depends on.
      make: called where there is no such file.

    Raises:
      CheckpointError: the file was written under another fingerprint, is damaged, or cannot be written.
    """
    if not path.exists():
        _keep(path, decides, make())
    try:
        with path.open("rb") as file, np.load(file) as stored:
            found = str(stored["decides"])
            value = _read(json.loads(str(stored["value"])), stored) if found == decides else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it to have it anew") from error
    if found != decides:
        raise CheckpointError(
            f"{path} was written by another configuration, or from other data; use another output "
            "directory, or remove the file to have it anew"
        )
    return value


def _keep(path: Path, decides: str, value: Any) -> None:
    arrays: list[np.ndarray] = []
    text = json.dumps(_written(value, arrays))
    temporary = path.with_name(f"{path.stem}.tmp.npz")
    named = {str(place): array for place, array in enumerate(arrays)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(temporary, decides=decides, value=text, **named)  # pyright: ignore[reportArgumentType]
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from error


# In JSON a dictionary stands as {"items": {...}} and an array as {"array": its number}.
_ARRAY = "array"


def _written(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value as JSON, with its arrays put aside."""
    if isinstance(value, dict):
        return {"items": {name: _written(item, arrays) for name, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_written(item, arrays) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {_ARRAY: str(len(arrays) - 1)}
    return value


def _read(written: Any, arrays: Any) -> Any:
    if isinstance(written, list):
        return [_read(item, arrays) for item in written]
    if isinstance(written, dict):
        if _ARRAY in written:
            return arrays[written[_ARRAY]]
        return {name: _read(item, arrays) for name, item in written["items"].items()}
    return written


__all__ = ["once"]
