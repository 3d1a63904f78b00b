"""Defences and explanations by name, as they are written on a command line."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.oracle.defences import (
    AdaptiveMisinformation,
    ConfidenceMask,
    Defence,
    GaussianNoise,
    ReverseSigmoid,
    Rounding,
    Temperature,
    TopK,
)
from dfke_jax.oracle.explanations import EXPLANATIONS, Explanation
from dfke_jax.oracle.poisoning import PredictionPoisoning

DEFENCES: dict[str, type[Defence]] = {
    kind.name: kind
    for kind in (
        Rounding,
        Temperature,
        GaussianNoise,
        TopK,
        ConfidenceMask,
        ReverseSigmoid,
        AdaptiveMisinformation,
        PredictionPoisoning,
    )
}
MODELS = {"adaptive_misinformation": "misinformation", "prediction_poisoning": "proxy"}
"""Which model a defence needs, by the name of its argument."""


def defence(text: str, models: Mapping[str, Any] | None = None) -> Defence:
    """A defence from ``name`` or ``name:key=value,key=value``.

    Args:
      text: for instance ``reverse_sigmoid:beta=1,gamma=0.1``.
      models: ``misinformation`` and ``proxy``, for the defences that need one.

    Raises:
      UnknownNameError: for an unknown defence or argument.
      InputError: for a value that is no number, one out of range, or a model that is missing.

    >>> defence("rounding:decimals=3").describe()
    {'name': 'rounding', 'decimals': 3, 'renormalise': True}
    """
    name, values = parse(text)
    if name not in DEFENCES:
        raise UnknownNameError("defence", name, DEFENCES)
    needed = MODELS.get(name)
    given = {} if needed is None else {needed: (models or {}).get(needed)}
    if None in given.values():
        raise InputError(
            f"defence {name!r} needs a model: models={{{needed!r}: ...}}, rows -> logits"
        )
    fields = {
        field.name: field
        for field in dataclasses.fields(DEFENCES[name])  # type: ignore[arg-type]
        if field.name not in given
    }
    return DEFENCES[name](**given, **_read(f"defence {name!r}", fields, values))


def explanation(text: str) -> Explanation:
    """The setting of an explanation from ``kind`` or ``kind:key=value,key=value``.

    Raises:
      UnknownNameError: for an unknown kind or argument.
      InputError: for a value that is no number or out of range.

    >>> explanation("smooth_grad:samples=8,classes=top").samples
    8
    """
    kind, values = parse(text)
    if kind not in EXPLANATIONS:
        raise UnknownNameError("explanation", kind, EXPLANATIONS)
    fields = {
        field.name: field for field in dataclasses.fields(Explanation) if field.name != "kind"
    }
    return Explanation(kind, **_read(f"explanation {kind!r}", fields, values))


def _read(
    what: str, fields: Mapping[str, dataclasses.Field], values: Mapping[str, str]
) -> dict[str, Any]:
    for key in values:
        if key not in fields:
            raise UnknownNameError(f"argument of {what}", key, fields)
    return {
        key: _like(fields[key].default, value, f"{what}: {key}") for key, value in values.items()
    }


def parse(text: str) -> tuple[str, dict[str, str]]:
    """``name:key=value,...`` -> the name and its values, as text.

    Raises:
      InputError: for anything that is not of this form.
    """
    name, _, rest = text.strip().partition(":")
    values: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip() or key.strip() in values:
            raise InputError(
                f"cannot read {part!r} in {text!r}; write name:key=value,key=value, every key once"
            )
        values[key.strip()] = value.strip()
    return name.strip(), values


def _like(default: Any, text: str, where: str) -> Any:
    """The text as a value of the default's type."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise InputError(f"{where} must be true or false, got {text!r}")
        return text.lower() == "true"
    kind = int if default is None else type(default)  # None stands for no rounding
    try:
        return kind(text)
    except ValueError:
        kind = "a whole number" if kind is int else "a number"
        raise InputError(f"{where} must be {kind}, got {text!r}") from None


__all__ = ["DEFENCES", "MODELS", "defence", "explanation", "parse"]
