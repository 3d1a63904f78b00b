"""What openers of other libraries share: normalisation, layout, weights in files."""

from pathlib import Path
from typing import Any

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared, existing
from dfke_jax.nn.classifier import Preprocessing
from dfke_jax.oracle.frameworks import Prepared, prepared_for

PREPARED = ("mean", "std", "layout")
"""Declarations that `prepared` uses."""


def prepared(said: Declared, shape: tuple[int, ...], layout: str = "NCHW") -> Prepared:
    """From rows to a model's input: (x − mean)/std, images in the declared layout, or else in this
    one.

    Raises:
      InputError: mean or std with another number of entries than there are channels.
    """
    return prepared_for(shape, said.layout or layout, said.mean or (0.0,), said.std or (1.0,))


def preprocessing(said: Declared, box: tuple[float, float] | None = None) -> Preprocessing:
    """The declared normalisation, as a white box has it."""
    default = Preprocessing()
    return Preprocessing(
        mean=said.mean or default.mean,
        std=said.std or default.std,
        box=said.box or box or default.box,
    )


def image_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """(H, W, C).

    Raises:
      InputError: rows are no images, which white-box methods synthesise.
    """
    if len(shape) != 3:
        raise InputError(f"{name} takes rows of {shape}, and white-box methods synthesise images")
    return shape[0], shape[1], shape[2]


def layout_of(sizes: tuple[int, ...], said: Declared, of: str) -> tuple[str, tuple[int, ...]]:
    """Layout and (H, W, C) of three sizes: as declared, or by which of them can be a number of
    channels.

    Raises:
      InputError: both ends can, or neither, and nothing is declared.
    """
    if said.layout is None and said.input_shape is not None:
        fits = [name for name, shape in _either(sizes).items() if shape == said.input_shape]
        if len(fits) == 1:
            return fits[0], said.input_shape
    first, last = sizes[0] in (1, 3, 4), sizes[-1] in (1, 3, 4)
    layout = said.layout or (
        "NCHW" if first and not last else "NHWC" if last and not first else None
    )
    if layout is None:
        raise InputError(
            f"{of} takes images of sizes {sizes}, of which any may be the channels; declare "
            "layout=NCHW or NHWC"
        )
    return layout, _either(sizes)[layout]


def _either(sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of an image, (H, W, C), in either layout."""
    return {"NCHW": (sizes[1], sizes[2], sizes[0]), "NHWC": sizes}


def flat_weights(path: str) -> dict[str, Any]:
    """Arrays by name of a safetensors file, as NumPy.

    Raises:
      InputError: it cannot be read, or safetensors is not installed.
    """
    file = existing(path, "give the file of weights")
    if file.suffix != ".safetensors":
        raise InputError(
            f"weights of this kind of model are read from .safetensors, not from {file.name}"
        )
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise InputError(
            f'{path} needs safetensors: `pip install -e ".[safetensors]"` in a clone of the repository'
        ) from None
    try:
        return load_file(file)
    except Exception as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error


def fitted(weights: dict[str, Any], wanted: dict[str, tuple[int, ...]], path: str | Path) -> None:
    """Raises `InputError` unless names and shapes of weights are those of a model."""
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        raise InputError(
            f"the weights of {path} are not those of the model: {len(missing)} are missing "
            f"({', '.join(missing[:3])}), {len(extra)} are unknown ({', '.join(extra[:3])})"
        )
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != tuple(shape):
            raise InputError(
                f"{name} of {path} has shape {tuple(weights[name].shape)}, the model's has "
                f"{tuple(shape)}"
            )


__all__ = [
    "PREPARED",
    "fitted",
    "flat_weights",
    "image_shape",
    "layout_of",
    "prepared",
    "preprocessing",
]
