"""What `dfke_jax.models.export` wrote: safetensors with what they are arrays of, and StableHLO."""

import json
from pathlib import Path
from typing import Any

import jax
from jax.tree_util import Partial

from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.core.method import Static
from dfke_jax.models import directories
from dfke_jax.models.declared import Declared
from dfke_jax.models.exporting import METADATA
from dfke_jax.models.opened import Found
from dfke_jax.nn.classifier import Classifier


def open(where: str, said: Declared) -> Found:
    """A ``.safetensors`` file that says what it holds, whole; or a trusted ``.stablehlo`` program.

    Raises:
      InputError: weights alone, whose class must be named; or a program that is not trusted.
    """
    path = Path(where).expanduser()
    if path.suffix.lower() == ".safetensors":
        return _weights(path, said)
    said.only("trusted", kind="a StableHLO program")
    if not said.trusted:
        raise InputError(
            f"{where} is a compiled program and may call foreign code; if it is yours, declare trusted=true"
        )
    try:
        program = jax.export.deserialize(bytearray(path.read_bytes()))
        (rows,) = program.in_avals
        shape = tuple(int(size) for size in rows.shape[1:])
    except Exception as error:  # a damaged file raises of many kinds
        raise InputError(
            f"{where} cannot be read as a program of jax.export: {type(error).__name__}: {error}"
        ) from error
    traced = Partial(_called, Static(program))
    return Found("a StableHLO program", path.name, said.shape(shape, path.name), traced=traced)


def _weights(path: Path, said: Declared) -> Found:
    from safetensors import SafetensorError, safe_open

    said.only("network", "size", "fit", "mean", "std", "module", kind="an exported model")
    try:
        with safe_open(path, "np") as file:
            about = (file.metadata() or {}).get(METADATA)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    if about is None:
        raise InputError(
            f"{path} holds weights alone; open their class, FILE.py:NAME, with weights={path.name}"
        )
    try:
        described = json.loads(about)
        if not isinstance(described, dict):
            raise ValueError(f"it is a {type(described).__name__}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} does not say what it holds: {error}") from error
    classifier = Classifier.of(described, arrays, path, module=said.module)
    directories.check(classifier, said, str(path))
    box = classifier.preprocessing.box
    return Found("an exported model", path.name, classifier.input_shape, traced=classifier, box=box)


def _called(program: Static, rows: Any) -> Any:
    return program.value.call(rows)


__all__ = ["open"]
