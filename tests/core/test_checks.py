"""NaN in settings."""

import dataclasses
import math

import pytest

from dfke_jax.core.checks import refuse_nan
from dfke_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inner:
    rates: tuple[float, ...] = (0.1,)
    names: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outer:
    rate: float = 1.0
    inner: Inner = Inner()


def test_nan_is_found_wherever_it_stands():
    refuse_nan(Outer(math.inf, Inner((0.0, -1.0), {"a": 2.0})))
    for settings, name in (
        (Outer(math.nan), "rate"),
        (Outer(inner=Inner((0.1, math.nan))), r"inner\.rates\.1"),
        (Outer(inner=Inner(names={"weight": math.nan})), r"inner\.names\.weight"),
    ):
        with pytest.raises(InputError, match=f"^{name} must be a number, got nan"):
            refuse_nan(settings)
