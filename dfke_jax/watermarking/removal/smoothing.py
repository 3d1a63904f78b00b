"""Removal at the door: the network stays as it is, what it is asked is smoothed."""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier, Preprocessing, as_float, check_images
from dfke_jax.watermarking.removal.common import Removed, check_attacker

Filter = Literal["median", "mean"]


def filtered(images: Array, kind: Filter = "median", window: int = 3) -> Array:
    """Median or mean over a square window around every pixel, channel by channel; the border is
    continued outwards.

    Args:
      images: (B, H, W, C).
      kind: ``median`` or ``mean``.
      window: width of the square, odd.

    Raises:
      UnknownNameError: for another kind. InputError: for an even window, or one below 1.
    """
    if kind not in ("median", "mean"):
        raise UnknownNameError("filter", kind, ("median", "mean"))
    if window < 1 or window % 2 == 0:
        raise InputError(f"the window of a filter must be odd, got {window}")
    reach, (_, height, width, _) = window // 2, images.shape
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    views = [padded[:, i : i + height, j : j + width] for i in range(window) for j in range(window)]
    if kind == "mean":
        return sum(views[1:], views[0]) / len(views)
    return jnp.sort(jnp.stack(views), axis=0)[len(views) // 2]


@dataclasses.dataclass(frozen=True)
class FilteredPreprocessing(Preprocessing):
    """A preprocessing before which images are filtered in pixel space.

    Attributes:
      filters: (kind, window) of each, in order.
    """

    filters: tuple[tuple[Filter, int], ...] = ()

    def __call__(self, images: Array) -> Array:
        for kind, window in self.filters:
            images = filtered(images, kind, window)
        return super().__call__(images)


def input_filter(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    kind: Filter = "median",
    window: int = 3,
) -> Removed:
    """The marked network behind a filter (see `filtered`). Key, images and labels are not needed.

    The suspect is a `Classifier` like any other, so further attacks can be made on it.
    """
    check_attacker(marked, images, None)
    filtered(jnp.zeros((1, *marked.input_shape)), kind, window)
    before = {
        field.name: getattr(marked.preprocessing, field.name)
        for field in dataclasses.fields(marked.preprocessing)
    }
    behind = FilteredPreprocessing(
        **{**before, "filters": (*before.get("filters", ()), (kind, window))}
    )
    suspect = dataclasses.replace(marked, preprocessing=behind)
    return Removed(
        suspect,
        suspect,
        "input_filter",
        f"{kind} filter of {window}×{window}",
        {"kind": kind, "window": window},
    )


@flax.struct.dataclass
class NoiseAveraged:
    """A classifier that answers the mean of its probabilities over noisy versions of what it is
    asked; a pytree.

    z = log( 1/D Σ_d σ(f(clip(x + n_d))) )

    Attributes:
      classifier: f.
      noise: n, (D, H, W, C), the same for every image.
    """

    classifier: Classifier
    noise: Array

    def __call__(self, images: Array) -> Array:
        low, high = self.classifier.preprocessing.box

        def answer(noise: Array) -> Array:
            return jax.nn.softmax(self.classifier(jnp.clip(images + noise[None], low, high)))

        return jnp.log(
            jnp.maximum(jax.lax.map(answer, self.noise).mean(0), jnp.finfo(jnp.float32).tiny)
        )

    def predict(self, images: Any, batch_size: int = 500) -> np.ndarray:
        """Logits (N, K) on the host; see `Classifier.predict`."""
        images = np.asarray(images)
        check_images(images, self.classifier.input_shape, self.classifier.preprocessing.box)
        batches = range(0, len(images), batch_size)
        return np.concatenate(
            [np.asarray(_answer(self, images[start : start + batch_size])) for start in batches]
        )


@jax.jit
def _answer(suspect: NoiseAveraged, images: Array) -> Array:
    return suspect(as_float(images))


def noise_averaging(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    deviation: float = 0.2,
    draws: int = 16,
) -> Removed:
    """The marked network behind Gaussian noise, averaged (see `NoiseAveraged`). Images and labels
    are not needed.

    Args:
      deviation: of the noise, in units of pixels. draws: D.

    Raises:
      InputError: for a deviation that is not positive, or fewer than one draw.

    Source: Cohen et al., Certified Adversarial Robustness via Randomized Smoothing, ICML 2019,
    section 3. Deviation: mean probabilities in the place of votes, and one set of draws for all
    images, so that answers repeat.
    """
    check_attacker(marked, images, None)
    if not deviation > 0 or draws < 1:
        raise InputError(
            f"deviation must be positive and draws at least 1, got {deviation} and {draws}"
        )
    noise = deviation * jax.random.normal(key, (draws, *marked.input_shape))
    suspect = NoiseAveraged(marked, noise)
    numbers = {"deviation": deviation, "draws": draws}
    return Removed(
        suspect, suspect, "noise_averaging", f"mean over {draws} draws of noise", numbers
    )


__all__ = ["FilteredPreprocessing", "NoiseAveraged", "filtered", "input_filter", "noise_averaging"]
