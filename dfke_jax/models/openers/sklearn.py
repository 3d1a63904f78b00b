"""scikit-learn estimators: skops files, and estimators in memory."""

from pathlib import Path
from typing import Any

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.oracle import from_sklearn


def open(where: Any, said: Declared) -> Found:
    """A fitted classifier, regressor or pipeline; rows are flattened in the order of their axes.

    A skops file holds no code, but may name classes to be made. Those of scikit-learn and NumPy
    are; others only with ``trusted``.
    """
    said.only("trusted", kind="a scikit-learn estimator")
    estimator = _read(where, bool(said.trusted)) if isinstance(where, str) else where
    victim = from_sklearn(estimator, said.input_shape, said.num_classes)
    return Found(
        "a scikit-learn estimator",
        victim.name,
        victim.input_shape,
        ask=victim.predict,
        num_classes=victim.num_classes,
        gives=victim.gives,
        classes=victim.classes,
    )


def _read(path: str, trusted: bool) -> Any:
    from skops import io

    file = Path(path).expanduser()
    try:
        foreign = io.get_untrusted_types(file=file)
        if foreign and not trusted:
            raise InputError(
                f"{path} asks for types outside scikit-learn and NumPy: "
                f"{', '.join(sorted(foreign))[:300]}; if the file is yours, declare trusted=true"
            )
        return io.load(file, trusted=foreign)
    except InputError:
        raise
    except Exception as error:  # zipfile, json and skops each have their own
        raise InputError(
            f"{path} cannot be read as a skops file: {type(error).__name__}: {error}"
        ) from error


__all__ = ["open"]
