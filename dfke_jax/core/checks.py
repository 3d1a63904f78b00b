"""Checks of settings that every kind of settings shares."""

import dataclasses
import math
from typing import Any

from dfke_jax.core.errors import InputError


def refuse_nan(settings: Any, name: str = "") -> None:
    """Refuses settings that hold NaN, which no comparison with a bound would notice.

    Args:
      settings: a dataclass; dataclasses, tuples, lists and dicts within it are looked through.
        name: how messages call it.

    Raises:
      InputError: naming the field.
    """
    if isinstance(settings, float) and math.isnan(settings):
        raise InputError(f"{name or 'a setting'} must be a number, got nan")
    if dataclasses.is_dataclass(settings):
        inner = [
            (field.name, getattr(settings, field.name)) for field in dataclasses.fields(settings)
        ]
    elif isinstance(settings, dict):
        inner = [(str(key), value) for key, value in settings.items()]
    elif isinstance(settings, tuple | list):
        inner = [(str(place), value) for place, value in enumerate(settings)]
    else:
        return
    for key, value in inner:
        refuse_nan(value, f"{name}.{key}" if name else key)


__all__ = ["refuse_nan"]
