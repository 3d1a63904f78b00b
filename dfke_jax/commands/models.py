"""Models on command lines: what can be written for one, and what can be declared of it."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfke_jax.models import Declared

MODEL = (
    "digits (a small network trained at once), a saved model's directory, FILE.pt2, .pt, .onnx, "
    ".skops or .toml, FILE.py:NAME, a Hugging Face folder, or http(s)://..."
)
_DECLARE = (
    "what %s does not say of itself: shape=28,28,1 classes=10 mean=0.5 std=0.5 layout=NHWC "
    "gives=logits weights=FILE trusted=true ...; what contradicts it is refused"
)


def add_declarations(
    parser: argparse.ArgumentParser, option: str = "--declare", of: str = "MODEL"
) -> None:
    """An option that says what a model does not say itself."""
    parser.add_argument(
        option, nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=_DECLARE % of
    )


def declarations(texts: Sequence[str], **options: object) -> "Declared":
    """What is declared, and what other options say of the same model, by fields of `Declared`.

    Raises:
      UnknownNameError, InputError: a declaration that is none, or is at odds with an option.
    """
    import dataclasses

    from dfke_jax.core.errors import InputError
    from dfke_jax.models import declared
    from dfke_jax.models.declared import shown

    said = declared(texts)
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    for name, value in given.items():
        if getattr(said, name) not in (None, value):
            raise InputError(
                f"{shown(name)} is declared to be {getattr(said, name)}, and must be {value} here"
            )
    return dataclasses.replace(said, **given)  # type: ignore[arg-type]


__all__ = ["MODEL", "add_declarations", "declarations"]
