"""Images with or without labels as values: a split, and a data set of two splits."""

import dataclasses
import functools
import hashlib
import operator
from typing import Any

import jax
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.data.schema import Schema
from dfke_jax.nn.classifier import check_images, check_labels

BOX = (0.0, 1.0)
UNEQUAL = 1.5
"""Classes of a test set are called unequal beyond this ratio; those of MNIST have 1.27."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images with labels, on the host.

    Attributes:
      images: (N, H, W, C), uint8 (0–255) or float32 in [0, 1]; wider floats are stored as float32.
      labels: (N,), stored as int32.

    Raises:
      InputError: for another shape or type, NaN, pixels outside the box, negative labels, or no
        rows at all.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.ndim != 4:
            raise InputError(f"images must be (N, H, W, C), got shape {images.shape}")
        check_images(images, images.shape[1:], BOX)
        check_labels(
            labels,
            len(images),
            int(labels.max(initial=0)) + 1 if labels.dtype.kind in "iu" else 1,
            every_class=False,
        )
        if images.dtype != np.uint8:
            images = images.astype(np.float32, copy=False)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int32, copy=False))

    @property
    def labelled(self) -> bool:
        """Whether there are labels; see `Unlabelled`."""
        return True

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.shape))
        labels = "labels" if self.labelled else "no labels"
        return (
            f"{type(self).__name__}({len(self)} images of {shape}, {self.images.dtype}, {labels})"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.images.shape[1:]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of types, shapes, pixels and labels: two splits that share it are the same."""
        found = hashlib.sha256()
        for array in (self.images, self.labels) if self.labelled else (self.images,):
            found.update(f"{array.dtype.str}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).view(np.uint8).data)
        return found.hexdigest()[:16]

    def on_device(self, sharding: Any = None) -> tuple[Array, Array]:
        """Images and labels as arrays on the device, so that a compiled loop can index them without
        the host.

        uint8 images stay uint8, a quarter of the memory; convert batches with
        `nn.classifier.as_float`.

        Args:
          sharding: a device or `jax.sharding.Sharding` of the rows; None is JAX's default device.
        """
        return jax.device_put((self.images, self.labels), sharding)

    def subset(self, selection: Any) -> "Split":
        """The first n rows, or the rows named by an array of indices (or a boolean mask).

        Raises:
          InputError: if there are no such rows.
        """
        if isinstance(selection, (int, np.integer)) and not isinstance(selection, bool):
            count = operator.index(selection)
            if not 1 <= count <= len(self):
                raise InputError(f"a subset of {count} rows was asked from a split of {len(self)}")
            return self._taken(slice(count))
        selection = np.asarray(selection)
        if selection.dtype == bool:
            if selection.shape != (len(self),):
                raise InputError(f"a mask must have shape ({len(self)},), got {selection.shape}")
            selection = np.flatnonzero(selection)
        if (
            selection.ndim != 1
            or not len(selection)
            or not np.issubdtype(selection.dtype, np.integer)
        ):
            raise InputError(
                f"indices must be a non-empty 1-D integer array, got {selection.dtype} "
                f"{selection.shape}"
            )
        if selection.min() < 0 or selection.max() >= len(self):
            raise InputError(
                f"indices must lie in [0, {len(self)}), got {selection.min()} to {selection.max()}"
            )
        return self._taken(selection)

    def _taken(self, rows: Any) -> "Split":
        return Split(self.images[rows], self.labels[rows])


class Unlabelled(Split):
    """Images without labels, on the host.

    Whatever reads ``labels`` of it is told that there are none.

    Args:
      images: as of `Split`.

    Raises:
      InputError: as `Split` of the images.
    """

    def __init__(self, images: np.ndarray):
        checked = Split(images, np.zeros(len(images), np.int32))
        object.__setattr__(self, "images", checked.images)

    @property
    def labels(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """There are none.

        Raises:
          InputError: always.
        """
        raise InputError("the data has no labels, and what is asked for needs them")

    @property
    def labelled(self) -> bool:
        """No."""
        return False

    def _taken(self, rows: Any) -> "Split":
        return Unlabelled(self.images[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A named image classification problem.

    Attributes:
      name: as asked for.
      train, test: the splits; `test` may lack a class, `train` may not.
      num_classes: K.
      class_names: K names.
      source: where the images came from, with the version where there is one.
      schema: of a table, whose rows are images of one pixel with D channels in [0, 1]: what these
        mean. See `dfke_jax.data.load`.

    Without labels (`Unlabelled` splits) K may be 0, which is not known: see `with_classes`.

    Raises:
      InputError: if the splits, the labels and the names contradict each other.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    source: str
    schema: Schema | None = None

    def __post_init__(self):
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.train.labelled != self.test.labelled:
            raise InputError(f"{self.name}: one split has labels and the other has none")
        if self.num_classes < 2 and (self.labelled or self.num_classes):
            raise InputError(
                f"{self.name}: a classification problem has at least two classes, not "
                f"{self.num_classes}"
            )
        if len(self.class_names) != self.num_classes:
            raise InputError(
                f"{self.name}: {len(self.class_names)} class names for {self.num_classes} classes"
            )
        if self.train.shape != self.test.shape:
            raise InputError(
                f"{self.name}: training images are {self.train.shape} and test images "
                f"{self.test.shape}; both must have the same (H, W, C)"
            )
        for part, split in (("training", self.train), ("test", self.test)) if self.labelled else ():
            what = f"{part} labels of {self.name}"
            check_labels(
                split.labels, len(split), self.num_classes, what, every_class=split is self.train
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.train.shape

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.train.labelled

    @functools.cached_property
    def unequal(self) -> bool:
        """Whether the largest class of the test images has more than `UNEQUAL` times as many as the
        smallest that occurs, so that accuracy alone says too little.
        """
        if not self.labelled:
            return False
        counts = np.bincount(self.test.labels)
        return int(counts.max()) > UNEQUAL * int(counts[counts > 0].min())

    def with_classes(self, count: int) -> "Dataset":
        """The same images without labels, of as many classes as a model knows."""
        return dataclasses.replace(
            self, num_classes=count, class_names=tuple(map(str, range(count)))
        )


__all__ = ["BOX", "UNEQUAL", "Dataset", "Split", "Unlabelled"]
