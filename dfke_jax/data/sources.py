"""Where data sets come from: scikit-learn's bundled digits, formulas, prepared TFDS directories,
and `.npz` files.

Nothing here touches a network, and nothing heavy is imported before it is needed.
"""

import contextlib
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError, MissingDataError, UnknownNameError
from dfke_jax.data.csv_files import is_csv, load_csv
from dfke_jax.data.dataset import Dataset, Split
from dfke_jax.data.files import holds_classes, load_folder, load_npz
from dfke_jax.data.speech import AudioFeatures, audio_features, read_audio, splits
from dfke_jax.data.synthetic import gaussian_classes
from dfke_jax.data.tones import tones

WELL_KNOWN = (
    "beans",
    "cifar10",
    "cifar100",
    "emnist",
    "fashion_mnist",
    "kmnist",
    "mnist",
    "speech_commands",
    "svhn_cropped",
)
"""TFDS image classification sets that messages suggest and `available` looks for."""

DIGITS_TEST_ROWS = 360
READ_CHUNK = 4096
_TFDS_NAME = re.compile(
    r"(?P<base>\w+)(/(?!\d+\.\d+\.\d+$)(?P<config>[\w.\-]+?))?([:/](?P<version>\d+\.\d+\.\d+))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Availability(NamedTuple):
    """Whether a data set can be loaded: `where` says where it is or, if it was not found, what
    would help.
    """

    name: str
    found: bool
    where: str


def load(name: str, *, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a data set that is already on this machine.

    Args:
      name: one of

        - ``digits``: scikit-learn's 1,797 digits of 8×8 pixels, divided by 16, in a fixed
          stratified split of 1,437 training and 360 test images;
        - ``tones``: synthetic spectrograms of ten kinds of tones, 32 moments by 24 frequencies, in
          3,000 training and 1,000 test sequences (`dfke_jax.data.tones`);
        - ``synthetic``: ten Gaussian classes in 8×16 pixels, most of which are noise
          (`data.synthetic`);
        - the name of a TFDS image classification set, such as ``mnist``, ``cifar10``,
          ``emnist/letters`` or ``mnist:3.0.1``; of several prepared versions the newest is read.
          Its test split is ``test``, or ``validation`` for sets without one. Images stay uint8.
          Sets of clips of up to a second of audio with a label, such as ``speech_commands``, become
          spectrograms (125, 80, 1): see `dfke_jax.data.speech`. Where a set is not prepared, a file
          ``NAME.npz`` in the same directory (Keras keeps ``mnist.npz``) serves as well;
        - a path that ends in ``.npz``, with the arrays x_train, y_train, x_test and y_test, or
          images and labels (or x and y), of which a fifth of every class is the test split: images
          (N, H, W, C) or (N, H, W), uint8 or floats in [0, 1], labels (N,) or (N, 1). K is one more
          than the largest training label. Without labels, images alone: x_train and x_test, or
          images, or x; K is then 0, which is not known;
        - ``FILE.csv`` or ``FILE.csv:COLUMN``, with the column of classes: a table, or pixels; see
          `dfke_jax.data.csv_files.load_csv`;
        - a folder with a folder of pictures for every class, or with such folders below ``train``
          and ``test``: see `dfke_jax.data.files.load_folder`.
      data_dir: the TFDS directory, or one that contains it as ``tfds/``. Default: the environment
        variable DFKE_DATA_DIR, then TFDS_DATA_DIR, then ``~/tensorflow_datasets``.

    Raises:
      MissingDataError: the set is not where it was looked for.
      UnknownNameError: nobody knows this name.
      InputError: the set is no image classification problem with images of one size, or it is
        broken.
    """
    name = os.fspath(name)
    if name.endswith(".npz"):
        return load_npz(Path(name).expanduser())
    if is_csv(name):
        return load_csv(name)
    if holds_classes(Path(name).expanduser()):
        return load_folder(Path(name).expanduser())
    if name == "digits":
        return _load_digits()
    if name == "tones":
        return tones()
    if name == "synthetic":
        return gaussian_classes()
    return _load_tfds(name, data_dir)


def available(data_dir: str | os.PathLike | None = None) -> list[Availability]:
    """What `load` would find: ``digits``, ``synthetic``, ``tones``, every prepared set in the TFDS
    directory, the well-known others.

    Looks at directories only: a prepared set that is not image classification is listed too.
    """
    rows = [
        Availability("digits", True, "bundled with scikit-learn"),
        Availability("tones", True, "drawn by a formula"),
        Availability("synthetic", True, "drawn from a formula"),
    ]
    root = tfds_directory(data_dir)
    present = []
    if root.is_dir():
        present = [entry.name for entry in root.iterdir() if entry.is_dir() and _prepared(entry)]
    for name in sorted({*present, *WELL_KNOWN}):
        if name in present:
            rows.append(Availability(name, True, str(root / name)))
        elif (root / f"{name}.npz").is_file():
            rows.append(Availability(name, True, str(root / f"{name}.npz")))
        else:
            rows.append(Availability(name, False, _remedy(name, root)))
    return rows


def tfds_directory(data_dir: str | os.PathLike | None = None) -> Path:
    """The TFDS directory that `load` reads, whether or not it exists."""
    chosen = data_dir or os.environ.get("DFKE_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    root = Path(chosen).expanduser() if chosen else Path.home() / "tensorflow_datasets"
    return root / "tfds" if (root / "tfds").is_dir() else root


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32)[..., None]
    labels = bunch.target.astype(np.int32)
    test = _stratified(labels, DIGITS_TEST_ROWS, np.random.default_rng(0))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Dataset(
        "digits",
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        10,
        tuple(map(str, range(10))),
        "scikit-learn load_digits",
    )


def _stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of `count` rows whose class proportions are those of `labels`, by largest
    remainders.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def _load_tfds(name: str, data_dir: Any) -> Dataset:
    match = _TFDS_NAME.fullmatch(name)
    root = tfds_directory(data_dir)
    directory = _find(root, match) if match else None
    if directory is None and (root / f"{name}.npz").is_file():
        return load_npz(root / f"{name}.npz")
    if directory is None:
        if not match or (match["base"] not in WELL_KNOWN and match["base"] not in _registered()):
            raise UnknownNameError("data set", name, ("digits", "synthetic", "tones", *WELL_KNOWN))
        raise MissingDataError(
            f"data set {name!r} is not prepared: looked for {root / match['base']}. "
            f"{_remedy(name, root)}"
        )
    sound = audio_features(directory)
    if sound is not None:
        return _load_audio(name, directory, sound, root)
    with _quiet():
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(directory)
        info = builder.info
        image_key, label_key = _keys(tfds, name, info)
        if info.file_format is None or info.file_format.value not in ("array_record", "parquet"):
            raise MissingDataError(
                f"{directory} is stored as "
                f"{getattr(info.file_format, 'value', 'an unknown format')}, which only TensorFlow "
                f"reads. {_remedy(name, root)}"
            )
        test_split = _test_split(name, info.splits)
        shape, feature = info.features[image_key].shape, info.features[label_key]
        train, test = (
            _read(builder.as_data_source(split=part), image_key, label_key, shape)
            for part in ("train", test_split)
        )
        names = tuple(map(str, feature.names or range(feature.num_classes)))
    source = f"tfds:{info.full_name}" + ("" if test_split == "test" else f", {test_split} as test")
    return Dataset(name, train, test, feature.num_classes, names, source)


def _load_audio(name: str, directory: Path, sound: AudioFeatures, root: Path) -> Dataset:
    """A set of clips; TFDS itself needs TensorFlow to know what audio is."""
    test_split = _test_split(name, splits(directory))
    try:
        with _quiet():
            train, test = (
                Split(*read_audio(directory, part, sound)) for part in ("train", test_split)
            )
    except MissingDataError as error:
        raise MissingDataError(f"{error}. {_remedy(name, root)}") from error
    source = f"tfds:{'/'.join(directory.parts[len(root.parts) :])}, log-mel spectrograms"
    source += "" if test_split == "test" else f", {test_split} as test"
    return Dataset(name, train, test, len(sound.names), sound.names, source)


def _test_split(name: str, found: Any) -> str:
    test_split = next((part for part in ("test", "validation") if part in found), None)
    if "train" not in found or test_split is None:
        raise InputError(
            f"data set {name!r} needs the splits train and test (or validation); it has "
            f"{', '.join(found)}"
        )
    return test_split


def _read(source: Any, image_key: str, label_key: str, shape: tuple[int, int, int]) -> Split:
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), READ_CHUNK):
        rows = range(start, min(start + READ_CHUNK, len(source)))
        records = (
            source.__getitems__(rows)
            if hasattr(source, "__getitems__")
            else [source[row] for row in rows]
        )
        for row, record in zip(rows, records, strict=True):
            images[row] = record[image_key]
            labels[row] = record[label_key]
    return Split(images, labels)


def _keys(tfds: Any, name: str, info: Any) -> tuple[str, str]:
    """Names of the image and of the label among the features; an error for another kind of data
    set.
    """
    features = info.features
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    keys = info.supervised_keys
    if (
        keys is None
        or len(keys) != 2
        or not all(
            isinstance(key, str) and key in features and isinstance(features[key], kind)
            for key, kind in zip(keys, kinds, strict=True)
        )
    ):
        candidates = [
            [key for key, value in features.items() if isinstance(value, kind)] for kind in kinds
        ]
        if any(len(found) != 1 for found in candidates):
            described = ", ".join(
                f"{key}: {type(value).__name__}" for key, value in features.items()
            )
            raise InputError(
                f"data set {name!r} is not image classification: its features are {described}"
            )
        keys = (candidates[0][0], candidates[1][0])
    image = features[keys[0]]
    if None in image.shape:
        raise InputError(
            f"images of data set {name!r} differ in size (shape {image.shape}); "
            "resize them and give them as an .npz file"
        )
    if np.dtype(image.np_dtype) != np.uint8:
        raise InputError(
            f"images of data set {name!r} are {np.dtype(image.np_dtype)}; only uint8 images are "
            "read"
        )
    return tuple(keys)


def _find(root: Path, match: re.Match) -> Path | None:
    """The directory of a prepared version: root/base[/config]/version, the newest unless one is
    named.
    """
    base = root / match["base"]
    if match["config"]:
        base = base / match["config"]
    if not base.is_dir():
        return None
    versions = _prepared(base) if match["version"] is None else [base / match["version"]]
    direct = [
        path for path in versions if path.parent == base and (path / "features.json").is_file()
    ]
    if direct:
        return direct[-1]
    configs = sorted({path.parent.name for path in versions if path.parent != base})
    if len(configs) > 1:
        named = ", ".join(f"{match['base']}/{config}" for config in configs)
        raise InputError(f"{base} holds several configurations; name one of {named}")
    return versions[-1] if configs else None


def _prepared(base: Path) -> list[Path]:
    """Prepared versions under base and one level below it (configurations), oldest first."""
    found = [
        path.parent
        for pattern in ("*/features.json", "*/*/features.json")
        for path in base.glob(pattern)
        if _VERSION.fullmatch(path.parent.name) and (path.parent / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda path: (path.parent.name, tuple(map(int, path.name.split(".")))))


def _remedy(name: str, root: Path) -> str:
    return (
        "Name the directory that holds it with the option --data-dir (argument data_dir) or the "
        "environment variable DFKE_DATA_DIR, or prepare it once on a machine with TensorFlow and a "
        f"network: import tensorflow_datasets as tfds; tfds.builder({name!r}, "
        f"data_dir={str(root)!r}, file_format='array_record').download_and_prepare()"
    )


def _registered() -> set[str]:
    with _quiet():
        import tensorflow_datasets as tfds

        return set(tfds.list_builders(with_community_datasets=False))


@contextlib.contextmanager
def _quiet():
    """Keeps what tensorflow-datasets logs and deprecates out of the program's output."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


__all__ = ["WELL_KNOWN", "Availability", "available", "load", "tfds_directory"]
