"""``FILE.toml``: a model and what is declared of it, written down once."""

import tomllib
from pathlib import Path
from typing import Any

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared, from_pairs
from dfke_jax.models.open import open_model
from dfke_jax.models.opened import OpenedModel

_PATHS = ("weights",)


def open(where: str, said: Declared) -> OpenedModel:
    """``model = "net.pt"`` and declarations, by the names of a command line (shape, classes, mean,
    ...).

    Paths are relative to the file. What is declared beside it must agree.

    Raises:
      InputError: the file is none, names no model, or says otherwise.
    """
    file = Path(where).expanduser()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{where} cannot be read as TOML: {error}") from error
    model = content.pop("model", None)
    if not isinstance(model, str):
        raise InputError(f'{where} names no model; write model = "..." in it')
    for name in _PATHS:
        if name in content:
            content[name] = str(_beside(file, content[name]))
    own = from_pairs(list(content.items())).given()
    for name, value in said.given().items():
        if own.get(name, value) != value:
            raise InputError(
                f"{where} declares {name} {own[name]}, and {value} is declared beside it"
            )
    foreign = model == "digits" or model.startswith(("http://", "https://"))
    return open_model(
        model if foreign else str(_beside(file, model)), Declared(**{**own, **said.given()})
    )


def _beside(file: Path, name: Any) -> Path:
    return (file.parent / Path(str(name)).expanduser()).absolute()


__all__ = ["open"]
