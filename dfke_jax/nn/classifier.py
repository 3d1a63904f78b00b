"""A classifier as a value: a network, its parameters, and the way from pixels to its input."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import CheckpointError, InputError, UnknownNameError
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.nn import saved
from dfke_jax.nn.observation import Observed, observe
from dfke_jax.nn.precision import apply, in_float32


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The way from pixel space to the network: resize or pad, then normalise.

    z = (fit(x) − mean) / std, where x of uint8 images is their pixels divided by 255 (`as_float`).

    Attributes:
      size: (height, width) that the network takes; None leaves images as they are.
      fit: ``pad`` centres the image on a canvas of the box's lower bound, ``bilinear`` and
        ``nearest`` resize it.
      mean, std: one number for all channels, or one per channel.
      box: lowest and highest pixel value.
    """

    size: tuple[int, int] | None = None
    fit: Literal["pad", "bilinear", "nearest"] = "pad"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.fit not in ("pad", "bilinear", "nearest"):
            raise InputError(f"fit must be pad, bilinear or nearest, not {self.fit!r}")
        if any(value <= 0 for value in self.std):
            raise InputError(f"std must be positive, got {self.std}")
        if not self.box[0] < self.box[1]:
            raise InputError(f"box must be (low, high) with low < high, got {self.box}")

    def __call__(self, images: Array) -> Array:
        """(B, H, W, C) in the box -> what the network takes."""
        if images.ndim != 4:
            raise InputError(f"images must be (B, H, W, C), got shape {images.shape}")
        if images.dtype == jnp.uint8:
            images = as_float(images)
        elif not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images must be uint8 or floating, got {images.dtype}")
        channels = images.shape[-1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(
                    f"{name} has {len(values)} values for images of {channels} channels"
                )
        if self.size is not None and images.shape[1:3] != self.size:
            images = self._fitted(images, self.size)
        if self.mean == (0.0,) and self.std == (1.0,):
            return images
        mean, std = (
            jnp.asarray(np.broadcast_to(values, (1, 1, 1, channels)), images.dtype)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std

    def _fitted(self, images: Array, size: tuple[int, int]) -> Array:
        height, width = images.shape[1:3]
        if self.fit != "pad":
            return jax.image.resize(images, (images.shape[0], *size, images.shape[3]), self.fit)
        if height > size[0] or width > size[1]:
            raise InputError(
                f"cannot pad a {height}×{width} image to {size[0]}×{size[1]}; use fit='bilinear'"
            )
        rows, columns = size[0] - height, size[1] - width
        pads = (
            (0, 0),
            (rows // 2, rows - rows // 2),
            (columns // 2, columns - columns // 2),
            (0, 0),
        )
        return jnp.pad(images, pads, constant_values=self.box[0])


@flax.struct.dataclass
class Classifier:
    """Images in pixel space in, logits out; a pytree, so that it travels into compiled programs as
    an argument.

    Calling it is `logits`. A stack of classifiers is the same value whose variables have a leading
    axis M; map over it with `jax.vmap(lambda classifier: classifier(images))(stack)`.

    Attributes:
      module: the Flax module, called as ``module.apply(variables, x, train=False)``.
      variables: its variables, ``{"params": ..., "batch_stats": ...}``.
      preprocessing: from pixels to the network's input.
      input_shape: (H, W, C) of one image in pixel space.
    """

    module: nn.Module = flax.struct.field(pytree_node=False)
    variables: PyTree
    preprocessing: Preprocessing = flax.struct.field(pytree_node=False, default=Preprocessing())
    input_shape: tuple[int, int, int] = flax.struct.field(pytree_node=False, default=(28, 28, 1))

    @classmethod
    def create(
        cls,
        module: nn.Module,
        key: Key,
        input_shape: tuple[int, int, int],
        preprocessing: Preprocessing | None = None,
    ) -> "Classifier":
        """A classifier with freshly drawn parameters."""
        preprocessing = preprocessing or Preprocessing()
        place = (module, preprocessing, tuple(input_shape))
        try:
            hash(module)
        except TypeError:  # a module of one's own that holds an array, say, is traced every time
            variables = jax.jit(lambda key: _begun(*place, key))(key)
        else:
            variables = _drawn(*place, key)
        variables = {
            name: tree for name, tree in variables.items() if name in ("params", "batch_stats")
        }
        height, width, channels = input_shape
        return cls(module, variables, preprocessing, (height, width, channels))

    def sizes(self) -> tuple[int | None, int]:
        """How many models the arrays are of, None where this is no stack, and K."""
        images = jax.ShapeDtypeStruct((2, *self.input_shape), jnp.float32)
        logits = lambda one, images: one.logits(images)
        try:
            return None, jax.eval_shape(logits, self, images).shape[-1]
        except Exception:  # Flax has an error of its own for arrays with an axis more
            models = {leaf.shape[:1] for leaf in jax.tree.leaves(self.variables)}
            if len(models) != 1 or models == {()}:
                raise
            return models.pop()[0], jax.eval_shape(jax.vmap(logits, (0, None)), self, images).shape[
                -1
            ]

    def facts(self) -> dict[str, Any]:
        """What belongs to the function beside network and arrays, as JSON takes it."""
        models, classes = self.sizes()
        return {
            "num_classes": classes,
            "input_shape": list(self.input_shape),
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "models": models,
        }

    def save(
        self,
        path: str | os.PathLike,
        *,
        made_by: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes the whole function into a directory: network, arrays, preprocessing, shape and
        classes.

        `dfke_jax.load` gives it back in another process, to the bit. A stack is written as one.

        Args:
          path: directory, to be made. made_by: JSON-able, what made it.
          overwrite: whether a saved model that is there may be replaced.

        Raises:
          InputError: something is there, or a field of the network cannot be written.
          CheckpointError: it cannot be written.
        """
        return saved.write(
            path, self.module, self.variables, self.facts(), made_by=made_by, overwrite=overwrite
        )

    @classmethod
    def load(cls, path: str | os.PathLike, *, module: nn.Module | None = None) -> "Classifier":
        """What `save` wrote.

        Args:
          path: the directory. module: of a network whose class is not this package's, which must be
            given; of any other it is checked.

        Raises:
          CheckpointError: there is none, or it is damaged. InputError: the module is another one.
        """
        return cls.of(saved.about(path), None, Path(path).expanduser(), module=module)

    @classmethod
    def of(
        cls,
        described: Mapping[str, Any],
        arrays: Mapping[str, Any] | None,
        path: Path,
        *,
        module: nn.Module | None = None,
    ) -> "Classifier":
        """What `saved.description` describes.

        Args:
          described: what was said.
          arrays: by name (``params/head/kernel``); those of the directory by default.
          path: where they are from. module: as of `load`.

        Raises: as `load`.
        """
        network = saved.module_of(described.get("module"), module)
        try:
            values = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in described["preprocessing"].items()
            }
            height, width, channels = (int(size) for size in described["input_shape"])
            preprocessing = Preprocessing(**values)  # type: ignore[arg-type]
            kinds, said = described["arrays"], (described["models"], described["num_classes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: {saved.FILE} does not describe a classifier: {error!r}"
            ) from error
        if arrays is None:
            variables = saved.arrays(path, kinds)
        else:
            wanted = saved.like(kinds, path)
            named = jax.tree.map_with_path(
                lambda place, _: "/".join(str(part.key) for part in place), wanted
            )
            if set(jax.tree.leaves(named)) != set(arrays):
                raise CheckpointError(f"{path} does not hold the arrays that it names")
            variables = jax.tree.map(
                lambda name, like: jnp.asarray(arrays[name], like.dtype), named, wanted
            )
        made = cls(network, variables, preprocessing, (height, width, channels))
        try:
            own = made.sizes()
        except Exception as error:  # Flax has errors of its own for arrays that are not there
            raise CheckpointError(
                f"{path}: the arrays are not those of {network!r}: {error}"
            ) from error
        if own != said:
            raise CheckpointError(
                f"{path}: {said[1]} classes of {said[0] or 1} models are named, and there are {own}"
            )
        return made

    @property
    def num_classes(self) -> int:
        """K."""
        return self.head_kernel.shape[-1]

    @property
    def head_kernel(self) -> Array:
        """Weights (D, K) of the last layer.

        Raises:
          InputError: for a network whose last layer is not called ``head``.
        """
        try:
            return self.variables["params"]["head"]["kernel"]
        except KeyError:
            raise InputError(
                f"{type(self.module).__name__} has no dense layer called 'head'"
            ) from None

    @property
    def has_normalisation(self) -> bool:
        """Whether the network has normalisation layers with running statistics."""
        return bool(jax.tree.leaves(self.variables.get("batch_stats", {})))

    @property
    def name(self) -> str:
        """Of the network's class, for messages."""
        return type(self.module).__name__

    def lacks(self, need: str) -> str:
        """Why the network does not show what a method needs (`dfke_jax.nn.whitebox.Need`); empty if
        it does.
        """
        if need == "head":
            found = "kernel" in self.variables["params"].get("head", {})
            return "" if found else "it has no dense layer called 'head'"
        if need == "moments":
            return "" if self.has_normalisation else "it has no batch normalisation"
        if need in ("features", "activations"):
            images = jax.ShapeDtypeStruct((2, *self.input_shape), jnp.float32)
            known = set(jax.eval_shape(self.activations, images)) - {"logits"}
            if need == "features":
                return "" if "features" in known else "it records no 'features'"
            return "" if known - {"features"} else "it records no hidden layer"
        return ""

    def __call__(self, images: Array) -> Array:
        return self.logits(images)

    def logits(self, images: Array) -> Array:
        """(B, H, W, C) floats in the box, or uint8 -> (B, K), in float32, with running statistics."""
        return in_float32(
            apply(self.module, self.variables, self.preprocessing(images), train=False)
        )

    def features(self, images: Array) -> Array:
        """The input of the last layer, (B, D)."""
        return self.activations(images)["features"]

    def activations(self, images: Array) -> dict[str, Array]:
        """What the network records on the way (`layers.record`): pre-activations by layer, and
        ``features``; and ``logits``.
        """
        seen = self.observe(images, activations=True)
        return {**seen.activations, "logits": seen.logits}

    def observe(
        self, images: Array, *, activations: bool = False, moments: bool = False
    ) -> Observed:
        """Logits and what else is asked for, in one pass with running statistics; see
        `dfke_jax.nn.observation`.

        Raises:
          InputError: for moments of a network without batch normalisation.
        """
        inputs = self.preprocessing(images)
        return observe(
            self.module, self.variables, inputs, activations=activations, moments=moments
        )

    def check_layers(self, names: Sequence[str]) -> None:
        """Raises `UnknownNameError` unless the network records all of these layers; nothing is
        computed.
        """
        images = jax.ShapeDtypeStruct((2, *self.input_shape), jnp.float32)
        known = jax.eval_shape(self.activations, images)
        for name in names:
            if name not in known:
                raise UnknownNameError(
                    f"recorded layer of {type(self.module).__name__}", name, known
                )

    def predict(self, images: Any, batch_size: int = 500) -> np.ndarray:
        """`predicted`: logits (N, K) of any number of images, on the host."""
        return predicted(self, images, batch_size)


def predicted(model: Any, images: Any, batch_size: int = 500) -> np.ndarray:
    """Logits (N, K) of any number of images, on the host, computed in equal batches.

    Args:
      model: a `dfke_jax.nn.whitebox.WhiteBox`. images: (N, H, W, C) floats in the box, or uint8.
      batch_size: rows per compiled call; the last batch is padded, so one program serves.

    Raises:
      InputError: for another shape, values outside the box, or NaN.
    """
    images = np.asarray(images)
    check_images(images, model.input_shape, model.preprocessing.box)
    batch_size = min(batch_size, len(images))
    rows = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padding = batch_size - len(batch)
        if padding:
            batch = np.concatenate([batch, np.repeat(batch[-1:], padding, 0)])
        rows.append(np.asarray(_predict(model, batch))[: batch_size - padding])
    return np.concatenate(rows)


@jax.jit
def _predict(model: Any, images: Array) -> Array:
    return model(as_float(images))


def as_float(images: Array) -> Array:
    """uint8 pixels 0–255 -> float32 in [0, 1]; floats are returned as float32, unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images.astype(jnp.float32)


def check_images(
    images: Any, shape: tuple[int, ...], box: tuple[float, float], what: str = "images"
) -> None:
    """Checks host arrays before long work.

    Args:
      images: (N, H, W, C). shape: the expected (H, W, C). box: lowest and highest allowed value
        (uint8 always fits).
      what: how the message calls them.

    Raises:
      InputError: naming what is wrong and what would be right.
    """
    images = np.asarray(images)
    expected = "×".join(map(str, shape))
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise InputError(
            f"{what} must be (N, H, W, C) with H×W×C = {expected}, got shape {images.shape}"
        )
    if len(images) == 0:
        raise InputError(f"{what} are empty")
    if images.dtype == np.uint8:
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{what} must be uint8 or floating, got {images.dtype}")
    if not np.isfinite(images).all():
        bad = int((~np.isfinite(images)).any((1, 2, 3)).sum())
        raise InputError(f"{what} contain NaN or infinity in {bad} of {len(images)} rows")
    low, high = float(images.min()), float(images.max())
    if low < box[0] - 1e-6 or high > box[1] + 1e-6:
        raise InputError(
            f"{what} must lie in [{box[0]}, {box[1]}], got values from {low:.4g} to {high:.4g}"
        )


def check_labels(
    labels: Any, count: int, num_classes: int, what: str = "labels", *, every_class: bool = True
) -> None:
    """Checks integer labels (N,) against the number of rows and classes.

    Raises:
      InputError: for another length or type, a label outside [0, K), or (if `every_class`) a class
        without samples.
    """
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise InputError(f"{what} must have shape ({count},), got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{what} must be integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"{what} must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}"
        )
    if every_class:
        empty = np.setdiff1d(np.arange(num_classes), labels)
        if len(empty):
            raise InputError(f"{what} have no sample of class {', '.join(map(str, empty))}")


def _begun(
    module: nn.Module, preprocessing: Preprocessing, shape: tuple[int, ...], key: Key
) -> PyTree:
    images = jnp.zeros((1, *shape), jnp.float32)
    return module.init(key, preprocessing(images), train=False)


_drawn = jax.jit(_begun, static_argnums=(0, 1, 2))  # compiled once a network


__all__ = ["Classifier", "Preprocessing", "as_float", "check_images", "check_labels", "predicted"]
