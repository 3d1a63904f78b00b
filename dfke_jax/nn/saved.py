"""Models on disk, whole: ``model.json`` says what the arrays beside it are, and what made them.

    DIRECTORY/model.json   network, classes, shape of an image, preprocessing, names of all arrays
    DIRECTORY/arrays       the arrays, with a checksum each (`dfke_jax.core.save`)

Nothing of a network is guessed when it is read again. A directory that `dfke_jax.core.save` wrote
of a classifier holds arrays alone; see `dfke_jax.models` for how such are opened.
"""

import dataclasses
import importlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax.core.checkpoint import restore, save, writable_directory, write_whole
from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.core.revision import writer
from dfke_jax.core.types import PyTree
from dfke_jax.nn import registry

FILE, ARRAYS = "model.json", "arrays"
FORMAT = 1
_OWN = "dfke_jax.nn."
_LARGEST = 4 << 20
"""Bytes of a ``model.json``; the largest network of the package needs less than 64 KiB."""


def write(
    path: str | os.PathLike,
    module: nn.Module,
    variables: PyTree,
    facts: Mapping[str, Any],
    *,
    made_by: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model whole or not at all.

    Args:
      path: directory, to be made. module, variables: the network.
      facts: JSON-able: what else belongs to the function (classes, shape, preprocessing).
      made_by: JSON-able: what made it; the versions of jax and of the package are added.
      overwrite: whether a model that is there may be replaced. What is no model never is.

    Raises:
      InputError: something is there already, or a field of the network cannot be written.
      CheckpointError: it cannot be written.
    """
    path, variables = Path(path).expanduser().absolute(), plain(variables)
    if path.exists() and not (overwrite and (path / FILE).is_file()):
        raise InputError(f"{path} exists, and nothing is overwritten; choose another directory")
    about = description(module, variables, facts, made_by)
    try:
        text = json.dumps(about, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"what is said of the model cannot be written as JSON: {error}") from error
    writable_directory(path.parent, needed_bytes=0)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        save(partial / ARRAYS, variables)
        write_whole(partial / FILE, text)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        raise CheckpointError(
            f"could not write the model {path}: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def description(
    module: nn.Module,
    variables: PyTree,
    facts: Mapping[str, Any],
    made_by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is said of a model beside its arrays.

    Raises:
      InputError: a field of the network cannot be written.
    """
    return {
        "format": FORMAT,
        "module": described(module),
        **facts,
        "arrays": jax.tree.map(_kind, plain(variables)),
        "made_by": {**(made_by or {}), **writer()},
    }


def about(path: str | os.PathLike) -> dict[str, Any]:
    """What ``model.json`` of a directory says.

    Raises:
      CheckpointError: there is none, it is damaged, or of a later format.
    """
    path = Path(path).expanduser()
    file = path / FILE
    if not path.exists():
        raise CheckpointError(f"there is no model at {path}")
    if not file.is_file():
        raise CheckpointError(f"{path} has no {FILE}: it is no saved model, or holds arrays alone")
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or type(found["format"]) is not int:
            raise ValueError("it has no format")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if found["format"] > FORMAT:
        raise CheckpointError(
            f"{file} has format {found['format']} of a later version; this one reads {FORMAT}"
        )
    return found


def like(kinds: Any, path: str | os.PathLike) -> PyTree:
    """Shapes and types of the arrays that are named.

    Raises:
      CheckpointError: it names none.
    """
    try:
        return jax.tree.map(_shaped, kinds)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{Path(path) / FILE} names no arrays: {error}") from error


def arrays(path: str | os.PathLike, kinds: Any) -> PyTree:
    """The arrays of a directory, as its ``model.json`` names them.

    Raises:
      CheckpointError: they are not those, or damaged.
    """
    path = Path(path).expanduser()
    return restore(path / ARRAYS, like(kinds, path))


def described(module: nn.Module) -> dict[str, Any]:
    """A module as its class, the values of its fields, and its name in the registry, if any."""
    kind = type(module)
    fields = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name") and field.init
    }
    said: dict[str, Any] = {"class": f"{kind.__module__}:{kind.__qualname__}"}
    if kind.__module__.startswith(_OWN):
        for name, value in fields.items():
            if not _simple(value):
                raise InputError(
                    f"field {name!r} of {kind.__name__} is {value!r}, which cannot be written"
                )
        said |= {"fields": fields, "network": _registered(module)}
    return said


def module_of(said: Any, given: nn.Module | None = None) -> nn.Module:
    """The module that `described` described.

    A class outside this package is never imported because a file names it: such a module must be
    given.

    Raises:
      InputError: it must be given, or is another one.
      CheckpointError: it cannot be made.
    """
    try:
        place, _, name = said["class"].partition(":")
        if not place.startswith(_OWN):
            if given is None:
                raise InputError(
                    f"the network is a {said['class']}, which is not of this package; give it as "
                    "module="
                )
            found = f"{type(given).__module__}:{type(given).__qualname__}"
            if type(given).__qualname__ != name:
                raise InputError(
                    f"the network was saved as {said['class']}, and module= is a {found}"
                )
            return given
        if not re.fullmatch(r"[a-z_.]+", place) or not name.isidentifier():
            raise ValueError(f"{said['class']!r} names no class")
        kind = getattr(importlib.import_module(place), name)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(f"{said['class']!r} is no network")
        made = kind(**{key: _tuples(value) for key, value in said["fields"].items()})
    except InputError:
        raise
    except Exception as error:  # a damaged file can ask for anything
        raise CheckpointError(
            f"the network that {FILE} describes cannot be made: {error!r}"
        ) from error
    if given is not None and given != made:
        raise InputError(f"the network was saved as {made!r}, and module= is {given!r}")
    return made


def network_name(module: nn.Module) -> str:
    """Its name in the registry, or that of its class."""
    return _registered(module) or type(module).__name__


def _registered(module: nn.Module) -> str | None:
    classes = getattr(module, "num_classes", None)
    if not isinstance(classes, int) or classes < 2:
        return None
    own = getattr(module, "depth", None), getattr(module, "width", None)
    units = getattr(module, "units", ())
    names = registry.names()
    if None not in own:
        names = (*names, f"wrn_{own[0]}_{own[1]}")
    if isinstance(units, tuple) and len(units) == 1:
        names = (*names, f"mlp_{units[0]}")
    for name in names:
        try:
            if registry.build(name, classes) == module:
                return name
        except InputError:  # a wide ResNet of no possible depth
            continue
    return None


def _simple(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_simple, value))
    return value is None or isinstance(value, bool | int | float | str)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that fields of modules are."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def plain(tree: Any) -> Any:
    """Nested dictionaries, whatever mappings the variables are."""
    if isinstance(tree, Mapping):
        return {str(name): plain(value) for name, value in tree.items()}
    return tree


def _kind(leaf: Any) -> str:
    leaf = jnp.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def _shaped(text: Any) -> jax.ShapeDtypeStruct:
    kind, _, sizes = str(text).partition("[")
    shape = tuple(int(size) for size in sizes.removesuffix("]").split(",") if size.strip())
    return jax.ShapeDtypeStruct(shape, jnp.dtype(kind))


__all__ = [
    "ARRAYS",
    "FILE",
    "about",
    "arrays",
    "described",
    "description",
    "like",
    "module_of",
    "network_name",
    "plain",
    "write",
]
