"""Tables: rows of features with a class or a number each, what their columns mean, and a split by a key.

Numbers are scaled to [−1, 1] by the range that they have in the whole table, as the range that a
service declares; categories are one-hot. Nothing here touches a network.
"""

import csv
import dataclasses
import gzip
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfke_jax.core.errors import InputError, MissingDataError, UnknownNameError
from dfke_jax.core.types import Key
from dfke_jax.data.schema import Column, Schema

_FILES = {
    "adult_income": ("adult.csv.gz", "salary"),
    "adult_race": ("adult.csv.gz", "race"),
    "german_credit": ("german_credit.csv.gz", "credit-label"),
}
_BUNDLED = ("iris", "wine", "breast_cancer", "digits", "diabetes")
_DRAWN = ("circles", "moons", "blobs", "five_class")
TABLES = (*_DRAWN, *_BUNDLED, *_FILES)
"""Names that `load_table` knows."""
_MOST_CLASSES = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A problem on feature vectors.

    Attributes:
      name: as asked for.
      schema: what the D numbers of a row are.
      train_rows, test_rows: (N, D) in float64.
      train_targets, test_targets: (N,): classes in [0, K) as int32, or numbers as float64.
      class_names: K names; empty where the target is a number.
      source: where the rows came from.

    Raises:
      InputError: where these contradict each other, rows are not finite, or a class is missing
        among the training rows.
    """

    name: str
    schema: Schema
    train_rows: np.ndarray
    train_targets: np.ndarray
    test_rows: np.ndarray
    test_targets: np.ndarray
    class_names: tuple[str, ...]
    source: str

    def __post_init__(self):
        for part in ("train", "test"):
            rows = self.schema.checked(getattr(self, f"{part}_rows")).astype(np.float64)
            targets = np.asarray(getattr(self, f"{part}_targets"))
            if not len(rows) or targets.shape != (len(rows),):
                raise InputError(
                    f"{self.name}: {len(rows)} {part} rows with targets of shape {targets.shape}"
                )
            if not (np.isfinite(rows).all() and np.isfinite(targets).all()):
                raise InputError(f"{self.name}: {part} rows or targets contain NaN or infinity")
            if self.class_names:
                if (
                    targets.dtype.kind not in "iu"
                    or targets.min() < 0
                    or targets.max() >= len(self.class_names)
                ):
                    raise InputError(
                        f"{self.name}: classes must lie in [0, {len(self.class_names)})"
                    )
                targets = targets.astype(np.int32)
            object.__setattr__(self, f"{part}_rows", rows)
            object.__setattr__(self, f"{part}_targets", targets)
        if self.class_names and len(np.unique(self.train_targets)) < len(self.class_names):
            raise InputError(
                f"{self.name}: of {len(self.class_names)} classes {len(np.unique(self.train_targets))} are "
                "among the training rows; another key splits them otherwise"
            )

    @property
    def num_classes(self) -> int:
        """K; 0 where the target is a number."""
        return len(self.class_names)


def load_table(
    name: str | os.PathLike,
    key: Key,
    *,
    target: str | None = None,
    schema: Mapping[str, Sequence[str]] | None = None,
    test_share: float = 0.3,
    data_dir: str | os.PathLike | None = None,
) -> Table:
    """A table that is on this machine, split at random.

    Args:
      name: one of

        - ``circles``, ``moons`` (5,000 rows, D = 2, 2 classes), ``blobs`` (5,000, 2, 3) and
          ``five_class`` (1,000, 20, 5): drawn by scikit-learn, always the same rows;
        - ``iris``, ``wine``, ``breast_cancer``, ``digits`` and, with a number as its target,
          ``diabetes``: bundled with scikit-learn;
        - ``adult_income``, ``adult_race`` and ``german_credit``: the UCI sets, read from
          ``tabular/adult.csv.gz`` and ``tabular/german_credit.csv.gz``;
        - a path that ends in ``.csv`` or ``.csv.gz``, with a line of names. A column with anything
          but numbers is a category.
      key: of the split.
      target: of a CSV file, the column to be predicted, or the name that one-hot columns
        ``NAME_LEVEL`` of it share. Its values are classes if they are words or at most 100 different
        whole numbers. Of Adult and German Credit, another than the usual one.
      schema: of a CSV file, category -> its one-hot columns. By default columns of zeros and ones
        that share a name before their last ``_``, with exactly one of them set in every row, belong
        together.
      test_share: of the rows, in (0, 1).
      data_dir: the directory that holds ``tabular/``, or that directory itself. Default: the
        environment variable DFKE_DATA_DIR.

    Raises:
      MissingDataError: a file is not where it was looked for.
      UnknownNameError: nobody knows this name, or the file has no such column.
      InputError: for a file that is no table of such a form, values that are missing, or a share
        outside (0, 1).
    """
    name = os.fspath(name)
    if not 0 < test_share < 1:
        raise InputError(f"test_share must lie in (0, 1), got {test_share}")
    shown, names = name, ()
    if name.endswith((".csv", ".csv.gz")):
        if target is None:
            raise InputError(f"{name}: say which column is to be predicted: target=...")
        path, shown = Path(name).expanduser(), Path(name).name.split(".csv")[0]
        columns, rows, targets, names = _from_csv(path, target, schema)
        source = f"csv:{path.name}"
    elif name in _FILES:
        file, usual = _FILES[name]
        path = _tabular(data_dir) / file
        columns, rows, targets, names = _from_csv(path, target or usual, schema)
        source = f"csv:{path.name}"
    elif target is not None or schema is not None:
        raise InputError(f"target and schema belong to CSV files, not to {name!r}")
    elif name in _BUNDLED:
        columns, rows, targets, names = _bundled(name)
        source = f"scikit-learn load_{name}"
    elif name in _DRAWN:
        columns, rows, targets, names = _drawn(name)
        source = "drawn by scikit-learn"
    else:
        raise UnknownNameError("table", name, TABLES)
    order = np.asarray(jax.random.permutation(key, len(rows)))
    tests = max(1, round(test_share * len(rows)))
    test, train = np.sort(order[:tests]), np.sort(order[tests:])
    return Table(
        shown,
        Schema(columns),
        rows[train],
        targets[train],
        rows[test],
        targets[test],
        names,
        source,
    )


def _tabular(data_dir: str | os.PathLike | None) -> Path:
    chosen = data_dir or os.environ.get("DFKE_DATA_DIR")
    if not chosen:
        raise MissingDataError(
            "name the directory that holds tabular/adult.csv.gz and tabular/german_credit.csv.gz with "
            "the argument data_dir or the environment variable DFKE_DATA_DIR"
        )
    root = Path(chosen).expanduser()
    return root / "tabular" if (root / "tabular").is_dir() else root


_Found = tuple[tuple[Column, ...], np.ndarray, np.ndarray, tuple[str, ...]]


def _bundled(name: str) -> _Found:
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    columns, rows = _numbers(
        list(map(str, bunch.feature_names)), np.asarray(bunch.data, np.float64)
    )
    if name == "diabetes":
        return columns, rows, np.asarray(bunch.target, np.float64), ()
    return columns, rows, bunch.target.astype(np.int32), tuple(map(str, bunch.target_names))


def _drawn(name: str) -> _Found:
    """Circles, moons and blobs as the paper names them; their noise is ours, which it does not state."""
    from sklearn import datasets

    if name == "circles":
        rows, classes = datasets.make_circles(5000, noise=0.08, factor=0.5, random_state=0)
    elif name == "moons":
        rows, classes = datasets.make_moons(5000, noise=0.15, random_state=0)
    elif name == "blobs":
        rows, classes = datasets.make_blobs(5000, centers=3, cluster_std=2.0, random_state=0)[:2]
    else:
        rows, classes = datasets.make_classification(
            1000, 20, n_informative=10, n_classes=5, n_clusters_per_class=1, random_state=0
        )
    rows, classes = np.asarray(rows), np.asarray(classes)
    columns, rows = _numbers([f"x{i}" for i in range(rows.shape[1])], rows)
    return columns, rows, classes.astype(np.int32), tuple(map(str, range(classes.max() + 1)))


def _numbers(
    names: list[str], values: np.ndarray, first: int = 0
) -> tuple[tuple[Column, ...], np.ndarray]:
    """Columns from place `first` on, and values (N, C) scaled to [−1, 1]; constant ones become 0 and keep that range."""
    low, high = values.min(0), values.max(0)
    width = high - low
    scaled = np.where(width > 0, 2 * (values - low) / np.where(width > 0, width, 1) - 1, 0.0)
    columns = []
    for i, name in enumerate(names):
        whole = width[i] > 0 and (values[:, i] == np.round(values[:, i])).all()
        if whole:  # exactly on the grid
            grid = np.linspace(-1, 1, int(width[i]) + 1)
            scaled[:, i] = grid[(values[:, i] - low[i]).astype(int)]
        step = 2 / float(width[i]) if whole else None
        columns.append(Column(name, (first + i,), step=step, units=(float(low[i]), float(high[i]))))
    return tuple(columns), scaled


def _from_csv(path: Path, target: str, groups: Mapping[str, Sequence[str]] | None) -> _Found:
    return encoded(read_columns(path), target, groups, path)


def encoded(
    values: dict[str, np.ndarray],
    target: str | None,
    groups: Mapping[str, Sequence[str]] | None,
    path: Path,
) -> _Found:
    """Columns of a CSV file -> what they mean, rows (N, D), targets (N,) and names of classes.

    Args:
      values: as of `read_columns`; they are used up. target, groups: as target and schema of
        `load_table`. Without a target, all columns are features and the targets are zeros.
      path: of the file, for messages.
    """
    groups = _one_hot(values) if groups is None else {name: list(of) for name, of in groups.items()}
    unknown = [name for of in groups.values() for name in of if name not in values]
    if unknown:
        raise UnknownNameError("column", unknown[0], values)
    if target is None:
        targets, names = np.zeros(len(next(iter(values.values()))), np.int32), ()
    elif target in groups:
        levels = groups.pop(target)
        targets = np.stack([values.pop(name) for name in levels], 1).argmax(1).astype(np.int32)
        names = tuple(_level(name, target) for name in levels)
    elif target in values:
        targets, names = as_targets(values.pop(target))
        groups = {name: [of for of in members if of != target] for name, members in groups.items()}
    else:
        raise UnknownNameError("column", target, (*values, *groups))
    grouped = {name: group for group, of in groups.items() for name in of}
    columns: list[Column] = []
    parts: list[np.ndarray] = []
    for name, column in values.items():
        first, group = sum(part.shape[1] for part in parts), grouped.get(name)
        if group is not None:
            members = groups[group]
            if name != members[0]:  # the whole group stands where its first column stood
                continue
            encoded = np.stack([values[of] for of in members], 1).astype(np.float64)
            if not (np.isin(encoded, (0, 1)).all() and (encoded.sum(1) == 1).all()):
                raise InputError(
                    f"{path}: of the columns of {group!r} exactly one must be 1 in every row"
                )
            levels = tuple(_level(of, group) for of in members)
        elif column.dtype.kind == "U":
            found, codes = np.unique(column, return_inverse=True)
            encoded, levels, group = np.eye(len(found))[codes], tuple(map(str, found)), name
        else:
            made, scaled = _numbers([name], column[:, None], first)
            columns += made
            parts.append(scaled)
            continue
        places = tuple(range(first, first + len(levels)))
        columns.append(Column(group, places, levels=levels))
        parts.append(encoded)
    if not columns:
        raise InputError(f"{path} has no columns but the target")
    return tuple(columns), np.concatenate(parts, 1), targets, names


def _level(name: str, group: str) -> str:
    return name.removeprefix(f"{group}_")


def as_targets(column: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes (N,) and their names, of words or few whole numbers; of others, numbers and none."""
    found, codes = np.unique(column, return_inverse=True)
    words = column.dtype.kind == "U"
    if words or ((found == np.round(found)).all() and len(found) <= _MOST_CLASSES):
        names = tuple(str(value) if words else f"{value:g}" for value in found)
        return codes.astype(np.int32), names
    return column, ()


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file by name: float64, or text where one of its values is no number."""
    if not path.is_file():
        raise MissingDataError(
            f"there is no file {path}; name the directory of tabular/ with data_dir or DFKE_DATA_DIR, "
            "or give the path of a CSV file with a line of names"
        )
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next(reader, [])]
            rows = [row for row in reader if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}") from error
    if len(set(names)) != len(names) or not names or not rows:
        raise InputError(f"{path} must have a line of different names and rows under it")
    ragged = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
    if ragged is not None:
        raise InputError(
            f"{path}: row {ragged + 1} has {len(rows[ragged])} values, the names are {len(names)}"
        )
    cells = list(itertools.chain.from_iterable(rows))
    columns = {}
    for i, name in enumerate(names):
        texts = [text.strip() for text in cells[i :: len(names)]]
        if not all(texts):
            raise InputError(
                f"{path}: column {name!r} has {texts.count('')} values that are missing; fill them in, "
                "or leave these rows out"
            )
        try:
            column = np.array(texts, np.float64)
        except ValueError:
            column = np.array(texts)
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise InputError(f"{path}: column {name!r} contains NaN or infinity")
        columns[name] = column
    return columns


def _one_hot(values: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Columns that share a name before their last ``_`` and are one-hot in all rows."""
    groups: dict[str, list[str]] = {}
    for name, column in values.items():
        if "_" in name and column.dtype.kind == "f" and np.isin(column, (0, 1)).all():
            groups.setdefault(name.rsplit("_", 1)[0], []).append(name)
    return {
        name: members
        for name, members in groups.items()
        if len(members) > 1 and bool(np.all(sum(values[of] for of in members) == 1))
    }


__all__ = ["TABLES", "Table", "as_targets", "encoded", "load_table", "read_columns"]
