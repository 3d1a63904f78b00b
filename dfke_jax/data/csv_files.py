"""CSV files as data sets: feature vectors as images of one pixel, or pixels as images."""

import re
from pathlib import Path

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.data.dataset import Dataset, Split, Unlabelled
from dfke_jax.data.files import CHANNELS, LABELS, divided
from dfke_jax.data.schema import Schema
from dfke_jax.data.tables import as_targets, encoded, read_columns

NO_TARGET = "-"
_NAME = re.compile(r"(?P<path>.*\.csv(\.gz)?)(:(?P<column>[^/\\]*))?", re.DOTALL)
_PIXEL = re.compile(r"(pixel_?\d+|\d+x\d+)")


def is_csv(name: str) -> bool:
    """Whether a data set's name is one of a CSV file: ``FILE.csv``, ``FILE.csv:COLUMN``."""
    return _NAME.fullmatch(name) is not None


def file_of(name: str) -> str:
    """The file in a data set's name, without a column."""
    match = _NAME.fullmatch(name)
    return name if match is None else match["path"]


def load_csv(name: str) -> Dataset:
    """A data set from a CSV file with a line of names.

    A table: numbers are scaled to [−1, 1] by their range in the file and categories are one-hot, as
    `dfke_jax.data.load_table` does. Its D features are the channels of images (N, 1, 1, D) of one
    pixel, in [0, 1]: (x + 1)/2 of numbers, 0 or 1 of categories; `standard` says how networks get
    the table's own scale back.

    Pixels: columns that are named ``pixel0``, ``pixel1``, ... or ``1x1``, ``1x2``, ... and hold
    whole numbers from 0 to 255 are images (N, H, H, C), row by row, channels last.

    A fifth of every class is the test split, the same rows every time.

    Args:
      name: ``FILE.csv:COLUMN``, with the column of the classes; ``FILE.csv`` where that is called
        ``labels`` or ``y``; ``FILE.csv:-`` where there are none.

    Raises:
      MissingDataError: there is no such file. UnknownNameError: it has no such column.
      InputError: it is no table, does not say which column is the class, or that one holds other
        numbers than classes.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    path, column = Path(match["path"]).expanduser(), match["column"]
    values = read_columns(path)
    target = column or next((known for known in LABELS if known in values), None)
    if target is None:
        raise InputError(
            f"which column of {path} is the class? Write {path}:COLUMN, or {path}:{NO_TARGET} if "
            f"there is none; its columns are {', '.join(values)[:300]}"
        )
    shown = path.name.split(".csv")[0]
    target = None if target == NO_TARGET and NO_TARGET not in values else target
    features = [name for name in values if name != target]
    if features and all(map(_PIXEL.fullmatch, features)):
        images, schema = _pixels(values, features, path), None
        targets, names = as_targets(values[target]) if target else (np.zeros(0), ())
    else:
        columns, rows, targets, names = encoded(values, target, None, path)
        schema = Schema(columns)
        mean, std = standard(schema)
        images = ((rows * std + mean).astype(np.float32))[:, None, None, :]
    if target is None:
        train, test = divided(Unlabelled(images))
    elif not names:
        raise InputError(f"{path}: column {target!r} holds numbers, and not classes")
    else:
        train, test = divided(Split(images, targets))
    return Dataset(shown, train, test, len(names), names, f"csv:{path.name}", schema)


def standard(schema: Schema) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel, by which (x − mean)/std is the table's own scale.

    Numbers in [0, 1] become numbers in [−1, 1]; places of categories stay 0 or 1.
    """
    numbers = {column.places[0] for column in schema.columns if not column.categorical}
    pairs = [(0.5, 0.5) if place in numbers else (0.0, 1.0) for place in range(schema.width)]
    return tuple(mean for mean, _ in pairs), tuple(std for _, std in pairs)


def uniform_rows(schema: Schema, rng: np.random.Generator, count: int) -> np.ndarray:
    """Images (count, 1, 1, D) of rows that are drawn as `Schema.uniform` draws them."""
    mean, std = standard(schema)
    rows = schema.uniform(rng, count) * std + mean
    return rows.astype(np.float32)[:, None, None, :]


def _pixels(values: dict[str, np.ndarray], names: list[str], path: Path) -> np.ndarray:
    columns = [values[name] for name in names]
    if any(column.dtype.kind != "f" for column in columns):
        raise InputError(f"{path}: columns of pixels hold words")
    pixels = np.stack(columns, 1)
    if pixels.min() < 0 or pixels.max() > 255 or (pixels != np.round(pixels)).any():
        raise InputError(f"{path}: pixels must be whole numbers from 0 to 255")
    for channels in CHANNELS:
        side = round((len(names) / channels) ** 0.5)
        if side * side * channels == len(names):
            return pixels.astype(np.uint8).reshape(-1, side, side, channels)
    raise InputError(
        f"{path} has {len(names)} columns of pixels, which are no square images of 1, 3 or 4 "
        "channels; save them as images (N, H, W, C) in an .npz file"
    )


__all__ = ["NO_TARGET", "file_of", "is_csv", "load_csv", "standard", "uniform_rows"]
