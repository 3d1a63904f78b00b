"""Data sets of one's own: an ``.npz`` file of arrays, or a folder of pictures by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError, MissingDataError
from dfke_jax.data.dataset import Dataset, Split, Unlabelled

NAMED = (("x_train", "y_train", "x_test", "y_test"), ("images", "labels"), ("x", "y"))
"""Arrays that an ``.npz`` file may hold: two splits, or images with labels. Without labels, images
alone: ``x_train`` and ``x_test``; ``images``; ``x``."""
IMAGES = ("images", "x", "x_train")
LABELS = ("labels", "y", "y_train")
"""The same names by what they are of, for what reads one array alone."""
CHANNELS = (1, 3, 4)
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
TEST_SHARE = 0.2


class Arrays(NamedTuple):
    """Images (N, H, W, C) and labels (N,) of a file, by part: ``train`` and ``test``, or ``all``.
    Labels are None where there are none.
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray | None]]


def read_npz(path: Path, *, labels: bool = True) -> Arrays:
    """The images and labels of an ``.npz`` file, under any of the names that are known everywhere.

    Args:
      path: of a file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``; or ``images`` and
        ``labels``; or ``x`` and ``y``. Images (N, H, W, C) or (N, H, W), labels (N,) or (N, 1).
      labels: whether there must be labels.

    Raises:
      MissingDataError: there is no such file.
      InputError: it is no archive of plain arrays, lacks them, or its channels come first.
    """
    known = "; ".join(", ".join(names) for names in NAMED)
    if not path.is_file():
        raise MissingDataError(
            f"there is no file {path}; give an .npz file with the arrays {known}"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = next((names for names in NAMED if set(names) <= set(archive.files)), None)
            bare = next(
                (
                    names
                    for names in NAMED
                    if set(names[::2]) <= set(archive.files)
                    and not set(names[1::2]) & set(archive.files)
                ),
                None,
            )
            if found is None and bare is not None:
                if labels:
                    raise InputError(
                        f"{path} has {', '.join(bare[::2])} and no {', '.join(bare[1::2])}: labels "
                        "are needed here"
                    )
                found = bare
            if found is None:
                held = ", ".join(archive.files) or "no arrays"
                nearest = max(NAMED, key=lambda names: len(set(names) & set(archive.files)))
                absent = ", ".join(sorted(set(nearest) - set(archive.files)))
                if len(nearest) > 2 and set(nearest) & set(archive.files):
                    raise InputError(f"{path} lacks {absent}; it has {held}")
                raise InputError(f"{path} needs the arrays {known}; it has {held}")
            arrays = [archive[name] if name in archive.files else None for name in found]
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise InputError(
            f"{path} cannot be read as an .npz file of plain arrays: {error}"
        ) from error
    names = ("train", "test") if len(arrays) == 4 else ("all",)
    pairs = zip(arrays[::2], arrays[1::2], strict=True)
    return Arrays(
        {
            name: (as_channels_last(images, f"{path}, {found[2 * place]}"), _flat(truth))
            for place, (name, (images, truth)) in enumerate(zip(names, pairs, strict=True))
            if images is not None
        }
    )


def as_channels_last(images: np.ndarray, of: str) -> np.ndarray:
    """(N, H, W) with a channel of its own; (N, H, W, C) as it is, if C can be channels.

    Raises:
      InputError: the last axis is no number of channels; the message asks whether the second one
        is.
    """
    if images.ndim == 3:
        return images[..., None]
    if images.ndim == 4 and images.shape[-1] not in CHANNELS:
        shape = images.shape
        asks = f"1, 3 or 4 channels belong on the last axis, and it has {shape[-1]}"
        if shape[1] in CHANNELS:
            asks += "; do they come first? Then save images.transpose(0, 2, 3, 1)"
        raise InputError(f"{of}: images {shape}: {asks}")
    return images


def load_npz(path: Path) -> Dataset:
    """A data set from an ``.npz`` file; see `read_npz`.

    A file without a test split gives a fifth of every class for it, the same rows every time; of
    images without labels, a fifth of all. K is one more than the largest training label, and not
    known without labels.
    """
    parts = read_npz(path, labels=False).parts
    made = {}
    for name, pair in parts.items():
        try:
            made[name] = split_of(*pair)
        except InputError as error:
            arrays = "images and labels" if name == "all" else f"x_{name} and y_{name}"
            raise InputError(f"{path}, {arrays}: {error}") from error
    train, test = divided(made["all"]) if "all" in made else (made["train"], made["test"])
    classes = int(train.labels.max()) + 1 if train.labelled else 0
    names = tuple(map(str, range(classes)))
    return Dataset(path.stem, train, test, classes, names, f"npz:{path.name}")


def load_folder(path: Path) -> Dataset:
    """A data set from a folder: ``CLASS/*.png``, or ``train/CLASS/*.png`` and ``test/CLASS/*.png``.

    Classes are the folders' names in order. Pictures must be of one size; colours are kept where
    any picture has them, transparency is dropped. Without a test folder a fifth of every class is
    the test split, the same pictures every time.

    Raises:
      InputError: no two classes, a class without pictures, pictures of several sizes or that cannot
        be read, or other classes in the test folder.
    """
    whole = not (path / "train").is_dir()
    if not whole and not (path / "test").is_dir():
        raise InputError(f"{path} has a folder train and needs a folder test beside it")
    names, parts = None, []
    for part in [path] if whole else [path / "train", path / "test"]:
        found = sorted(child.name for child in part.iterdir() if child.is_dir())
        if names is not None and found != names:
            raise InputError(f"{part} holds the classes {found[:5]}, and not those of train")
        names = found
        parts.append(_pictures(part, found))
    assert names is not None
    colours = any(part[0].shape[-1] == 3 for part in parts)
    made = [Split(np.repeat(x, 3, -1) if colours and x.shape[-1] == 1 else x, y) for x, y in parts]
    train, test = divided(made[0]) if whole else made
    return Dataset(path.name, train, test, len(names), tuple(names), f"folder:{path.name}")


def divided(split: Split, share: float = TEST_SHARE) -> tuple[Split, Split]:
    """Training and test rows: of every class the same share, at least one row of each in both.

    Raises:
      InputError: for a class of a single row, or a single row without a label.
    """
    rng, test = np.random.default_rng(0), []
    if not split.labelled:
        if len(split) < 2:
            raise InputError("one image cannot be divided in two splits")
        rows = rng.permutation(len(split))
        count = max(1, round(share * len(rows)))
        return split.subset(np.sort(rows[count:])), split.subset(np.sort(rows[:count]))
    for k in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == k)
        if len(rows) < 2:
            raise InputError(f"class {k} has one image, which cannot be divided in two splits")
        test.append(rng.choice(rows, max(1, round(share * len(rows))), replace=False))
    chosen = np.sort(np.concatenate(test))
    return split.subset(np.setdiff1d(np.arange(len(split)), chosen)), split.subset(chosen)


def holds_classes(path: Path) -> bool:
    """Whether a folder has folders of pictures, and is no prepared TFDS set."""
    if not path.is_dir():
        return False
    inner = path / "train" if (path / "train").is_dir() else path
    folders = [child for child in inner.iterdir() if child.is_dir()]
    return any(file.suffix.lower() in PICTURES for child in folders for file in child.iterdir())


def _pictures(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, H, W, C) as uint8, and the places of their classes (N,)."""
    from PIL import Image, UnidentifiedImageError

    images, labels = [], []
    if len(classes) < 2:
        raise InputError(f"{folder} needs a folder for each class, at least two; it has {classes}")
    for place, name in enumerate(classes):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in PICTURES)
        if not files:
            raise InputError(f"{folder / name} holds no pictures ({', '.join(PICTURES)})")
        for file in files:
            try:
                with Image.open(file) as picture:
                    grey = picture.mode in ("1", "L", "LA")
                    array = np.asarray(picture.convert("L" if grey else "RGB"))
            except (OSError, UnidentifiedImageError) as error:
                raise InputError(f"{file} cannot be read as a picture: {error}") from error
            images.append(array[..., None] if array.ndim == 2 else array)
            labels.append(place)
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise InputError(
            f"pictures of {folder} are of several sizes, {sorted(sizes)[:4]}; bring them to one"
        )
    colours = max(image.shape[-1] for image in images)
    return np.stack([np.repeat(i, colours // i.shape[-1], -1) for i in images]), np.array(labels)


def split_of(images: np.ndarray, labels: np.ndarray | None) -> Split:
    """A split, `Unlabelled` where there are no labels."""
    return Unlabelled(images) if labels is None else Split(images, labels)


def _flat(labels: np.ndarray | None) -> np.ndarray | None:
    return (
        labels[:, 0] if labels is not None and labels.ndim == 2 and labels.shape[1] == 1 else labels
    )


__all__ = [
    "CHANNELS",
    "IMAGES",
    "LABELS",
    "NAMED",
    "Arrays",
    "divided",
    "holds_classes",
    "load_folder",
    "load_npz",
    "read_npz",
    "split_of",
]
