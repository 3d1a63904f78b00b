"""``FILE.py:NAME``: what a Python file of one's own defines. Opening it runs the file."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared, existing
from dfke_jax.models.open import open_model
from dfke_jax.models.opened import OpenedModel


def open(where: str, said: Declared) -> OpenedModel:
    """A model, a function of rows, or what makes a model: a class or a function without arguments.

    A file in a package (a folder with ``__init__.py``) is imported as the module that it is, so
    that its own imports work.

    Raises:
      InputError: there is no such file or name, it fails, or it needs arguments.
    """
    path, _, name = where.rpartition(":")
    file = existing(path, "write FILE.py:NAME")
    module = _imported(file)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [
                key
                for key, value in vars(module).items()
                if callable(value) and not key.startswith("_")
            ]
            raise InputError(
                f"{file} defines no {name!r}; it defines "
                f"{', '.join(known)[:300] or 'nothing that is callable'}"
            )
        found = getattr(found, part)
    if isinstance(found, type) or (inspect.isroutine(found) and not _of_rows(found)):
        found = _made(found, where)
    return open_model(found, said)


def _of_rows(function: Any) -> bool:
    """Whether it takes rows: an argument without a default, which is no source of randomness."""
    return any(name not in ("key", "rngs") for name in _required(function))


def _required(function: Any) -> list[str]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind in kinds]


def _made(maker: Any, where: str) -> Any:
    """What a class or a function makes; a key, or NNX's rngs, are given where it asks for them."""
    given: dict[str, Any] = {}
    try:
        for name in _required(maker):
            if name == "key":
                import jax

                given[name] = jax.random.key(0)
            elif name == "rngs":
                from flax import nnx

                given[name] = nnx.Rngs(0)
            else:
                raise InputError(
                    f"{where} needs {name!r}; name a function without arguments that makes the "
                    "model as it should be"
                )
        return maker(**given)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where} fails when the model is made: {type(error).__name__}: {error}"
        ) from error


def _imported(file: Path) -> ModuleType:
    file = file.resolve()
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    packaged = len(parts) > 1
    name = ".".join(parts) if packaged else f"_opened_{file.stem}_{abs(hash(file)):x}"
    sys.path.insert(0, str(root))
    try:
        if packaged:
            module = importlib.import_module(name)
            if Path(module.__file__ or "").resolve() != file:
                raise InputError(
                    f"{file} is the module {name}, and another of that name is imported: "
                    f"{module.__file__}"
                )
            return module
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{file} fails when it is imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(root))


__all__ = ["open"]
