"""Victims from PyTorch, scikit-learn and the Adversarial Robustness Toolbox."""

import dataclasses
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Static
from dfke_jax.core.types import Array
from dfke_jax.oracle.victims import (
    HostVictim,
    Shape,
    answer_kind,
    as_numbers,
    as_shape,
    check_logits,
    probe_rows,
    victim_values,
)


def from_sklearn(
    estimator: Any, input_shape: Shape | None = None, num_classes: int | None = None
) -> HostVictim:
    """A host victim from a fitted scikit-learn estimator or pipeline; rows are flattened in the
    order of their axes.

    Of a classifier column k is the estimator's ``classes_[k]``. With `num_classes` = K and integer
    classes in [0, K), column k is class k, and classes that the estimator never saw have
    probability zero. One without ``predict_proba`` gives labels alone. A regressor gives what it
    predicts, (B,) as one column, as ``logits``.

    Args:
      input_shape: of a row: (H, W, C), (D,) or such; (1, 1, D) by default.

    Raises:
      InputError: for an estimator that is not fitted, is neither classifier nor regressor, or takes
        another number of features.
    """
    name = type(estimator).__name__
    if _regresses(estimator):
        return _from_regressor(estimator, input_shape, num_classes)
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise InputError(f"{name} has no classes_: it is not fitted, or no classifier")
    if isinstance(classes, list):
        raise InputError(f"{name} has several outputs; a victim has one")
    classes = np.asarray(classes)
    input_shape = _features(estimator, input_shape)
    columns, count = np.arange(len(classes)), len(classes)
    if num_classes is not None:
        whole = np.issubdtype(classes.dtype, np.integer)
        if whole and classes.min() >= 0 and classes.max() < num_classes:
            columns, count = classes, num_classes
        elif num_classes != len(classes):
            raise InputError(
                f"{name} knows the classes {classes.tolist()}, not {num_classes} of them"
            )
    meaning = (
        tuple(range(count))
        if num_classes is not None and count != len(classes)
        else tuple(classes.tolist())
    )

    def probabilities(rows: np.ndarray) -> np.ndarray:
        found = np.asarray(estimator.predict_proba(rows.reshape(len(rows), -1)))
        answers = np.zeros((len(rows), count), found.dtype)
        answers[:, columns] = found
        return answers

    def labels(rows: np.ndarray) -> np.ndarray:
        found = np.asarray(estimator.predict(rows.reshape(len(rows), -1)))
        return columns[np.searchsorted(classes, found)].astype(np.int32)

    soft = hasattr(estimator, "predict_proba")  # an SVC offers it only where it was fitted for it
    gives = "probabilities" if soft else "label"
    return HostVictim(
        probabilities if soft else labels, count, input_shape, gives, name, meaning, repeatable=True
    )


def _features(estimator: Any, input_shape: Shape | None) -> Shape:
    """The shape of a row, which must have as many numbers as the estimator takes."""
    name, features = type(estimator).__name__, getattr(estimator, "n_features_in_", None)
    if input_shape is None:
        if features is None:
            raise InputError(f"{name} does not say how many features it takes; give input_shape")
        return 1, 1, int(features)
    if features is not None and math.prod(input_shape) != features:
        raise InputError(
            f"{name} takes {features} features, rows of {input_shape} have {math.prod(input_shape)}"
        )
    return input_shape


def _regresses(estimator: Any) -> bool:
    from sklearn.base import BaseEstimator, is_regressor

    return isinstance(estimator, BaseEstimator) and is_regressor(estimator)


def _from_regressor(estimator: Any, input_shape: Shape | None, outputs: int | None) -> HostVictim:
    """Its number of outputs is what it predicts of a row of zeros."""
    from sklearn.exceptions import NotFittedError

    name, input_shape = type(estimator).__name__, _features(estimator, input_shape)

    def values(rows: np.ndarray) -> np.ndarray:
        return np.asarray(estimator.predict(rows.reshape(len(rows), -1))).reshape(len(rows), -1)

    try:
        count = values(np.zeros((1, *input_shape))).shape[1]
    except NotFittedError as error:
        raise InputError(f"{name} is not fitted") from error
    if outputs not in (None, count):
        raise InputError(f"{name} predicts {count} numbers of a row, not {outputs}")
    return HostVictim(values, count, input_shape, "logits", name, None, repeatable=True)


def from_art(
    estimator: Any,
    input_shape: Shape | None = None,
    num_classes: int | None = None,
    gives: str | None = None,
) -> HostVictim:
    """A host victim from a classifier of the Adversarial Robustness Toolbox; rows are (H, W, C) or
    (D,).

    An estimator with its channels first gets them so. What it answers is found by asking two rows.

    Raises:
      InputError: another shape, number of classes or kind of answer than declared.
    """
    name, own = type(estimator).__name__, as_shape(estimator.input_shape)
    first = len(own) == 3 and bool(getattr(estimator, "channels_first", False))
    shape = (own[1], own[2], own[0]) if first else own
    for what, given, found in (
        ("input_shape", input_shape, shape),
        ("num_classes", num_classes, estimator.nb_classes),
    ):
        if given is not None and given != found:
            raise InputError(f"{what} is {found} for {name}, not {given}")

    def predict(rows: np.ndarray) -> np.ndarray:
        return np.asarray(estimator.predict(np.transpose(rows, (0, 3, 1, 2)) if first else rows))

    low, high = (
        (0.0, 1.0)
        if estimator.clip_values is None
        else map(float, map(np.max, estimator.clip_values))
    )
    rows = (low + (high - low) * np.asarray(probe_rows(shape, 2))).astype(np.float32)
    kind = answer_kind(as_numbers(predict(rows), name))
    found = kind if kind in ("label", "probabilities") else "logits"
    if gives not in (None, found):
        raise InputError(f"{name} gives {found}, not {gives}")
    return HostVictim(predict, int(estimator.nb_classes), shape, found, name, repeatable=True)  # type: ignore[arg-type]


def from_torch(
    module: Any,
    input_shape: Shape,
    num_classes: int | None = None,
    *,
    gives: Literal["logits", "probabilities"] = "logits",
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    device: str | None = None,
    batch_size: int = 256,
) -> HostVictim:
    """A host victim from a PyTorch module. It is put in eval mode, stays there, and runs without
    gradients.

    Rows become (x − mean)/std in the precision of the module's parameters; images (B, H, W, C) in
    its layout.

    Args:
      input_shape: (H, W, C) of images, always in this order; or of other rows, which have no
        layout: (D,), ...
      num_classes: K; found by asking for two rows where it is not given.
      layout: of the module's input, if it takes images.
      mean, std: one number, or one per channel (entry of a row's last axis).
      device: where it is moved; where its parameters are by default.
      batch_size: rows per call.

    Raises:
      InputError: if it does not return one tensor (B, K).
    """
    name, predict = (
        type(module).__name__,
        torch_predict(module, input_shape, layout, mean, std, device),
    )
    probe = as_numbers(predict(np.asarray(probe_rows(input_shape, 2))), name)
    if probe.ndim != 2 or len(probe) != 2 or (num_classes and probe.shape[1] != num_classes):
        raise InputError(
            f"{name} must answer 2 rows with shape (2, {num_classes or 'K'}), got {probe.shape}"
        )
    if gives == "logits":
        try:
            check_logits(probe)
        except InputError as error:
            raise InputError(f"{name} {error}") from error
    return HostVictim(
        predict, probe.shape[1], input_shape, gives, name, None, batch_size, repeatable=True
    )


def torch_predict(
    module: Any,
    input_shape: Shape,
    layout: str = "NCHW",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    device: str | None = None,
) -> Callable[[np.ndarray], Any]:
    """Rows (B, ...) -> the tensor that a module answers, in eval mode and without gradients; as of
    `from_torch`.
    """
    torch = importlib.import_module("torch")
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    place, precision = device or str(first.device), first.dtype
    module.to(place).eval()
    ready = prepared_for(input_shape, layout, mean, std)

    def predict(rows: np.ndarray) -> Any:
        module.eval()
        with torch.no_grad():
            answers = module(
                torch.from_numpy(np.array(ready(rows, np), order="C")).to(place, precision)
            )
        if not isinstance(answers, torch.Tensor):
            raise InputError(
                f"{type(module).__name__} returns {type(answers).__name__}; wrap it so that it "
                "returns one tensor (B, K)"
            )
        return answers

    return predict


def traced_torch(
    module: Any,
    input_shape: Shape,
    *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    tolerance: float = 1e-3,
) -> Partial:
    """A PyTorch module as a traceable victim, through the package torch2jax (``t2j``), if that
    agrees with the original.

    Args:
      tolerance: the largest difference on 16 random rows, relative to the largest answer (at least
        1).
      The others are as in `from_torch`.

    Returns:
      A `Partial` over the module's state, for `Oracle`.

    Raises:
      InputError: if torch2jax is not installed, cannot convert the module, or its answers differ.
    """
    name = type(module).__name__
    try:
        t2j = importlib.import_module("torch2jax").t2j
    except (ImportError, AttributeError) as error:
        raise InputError(
            "tracing a PyTorch module needs the package torch2jax with its function t2j (pip "
            "install torch2jax); frameworks.from_torch runs the module on the host without it"
        ) from error
    original = from_torch(module, input_shape, layout=layout, mean=mean, std=std)
    state = {
        key: jnp.asarray(value.detach().cpu().numpy()) for key, value in module.state_dict().items()
    }
    prepared = Static(Prepared(as_shape(input_shape), layout, tuple(mean), tuple(std)))
    rows = probe_rows(input_shape, 16)
    expected = victim_values(original, rows)
    try:
        victim = Partial(_traced, Static(t2j(module)), prepared, state)
        found = np.asarray(jax.jit(victim)(rows))
    except Exception as error:
        raise InputError(
            f"torch2jax cannot convert {name} ({type(error).__name__}: {error}); use "
            "frameworks.from_torch"
        ) from error
    if found.shape != expected.shape:
        raise InputError(
            f"torch2jax answers shape {found.shape} for {name}, PyTorch {expected.shape}"
        )
    apart = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    if not apart <= tolerance:
        raise InputError(
            f"torch2jax and PyTorch differ by {apart:.2g} for {name} on random rows, more than "
            f"{tolerance:g}; use frameworks.from_torch"
        )
    return victim


def _traced(converted: Static, prepared: Static, state: dict[str, Array], rows: Array) -> Array:
    # PyTorch's broadcasting, whatever is set for the rest of the program
    with jax.numpy_rank_promotion("allow"):
        return converted.value(prepared.value(rows, jnp), state_dict=state)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """From rows to a module's input, in NumPy or JAX."""

    input_shape: Shape
    layout: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, rows: Any, numpy: Any) -> Any:
        shape = (*(1,) * len(self.input_shape), self.input_shape[-1])
        mean, std = (
            np.broadcast_to(np.asarray(v, np.float32), shape) for v in (self.mean, self.std)
        )
        if self.mean != (0.0,) or self.std != (1.0,):
            rows = (rows - mean) / std
        images = len(self.input_shape) == 3
        return numpy.transpose(rows, (0, 3, 1, 2)) if images and self.layout == "NCHW" else rows


def prepared_for(
    input_shape: Shape, layout: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Prepared:
    if layout not in ("NCHW", "NHWC"):
        raise InputError(f"layout must be 'NCHW' or 'NHWC', not {layout!r}")
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, input_shape[-1]):
            of = (
                f"images of {input_shape[2]} channels"
                if len(input_shape) == 3
                else f"rows of shape {input_shape}"
            )
            raise InputError(f"{what} has {len(values)} values for {of}")
    if min(std) <= 0:
        raise InputError(f"std must be positive, got {std}")
    return Prepared(as_shape(input_shape), layout, tuple(mean), tuple(std))


def as_host_victim(
    victim: Any,
    input_shape: Shape | None,
    num_classes: int | None,
    gives: str | None = None,
    **normalisation: Any,
) -> HostVictim | None:
    """A host victim from a `HostVictim`, a PyTorch module, a scikit-learn or an ART estimator; None
    for anything else.

    Args:
      gives: of a PyTorch module, as of `from_torch`, or an ART estimator.
      **normalisation: `mean` and `std` of a PyTorch module, as of `from_torch`.

    Raises:
      InputError: if shape or classes disagree with the victim's own, a module comes without a
        shape, or another victim with a normalisation.
    """
    torch = sys.modules.get("torch")  # a module cannot exist before torch was imported
    if torch is not None and isinstance(victim, torch.nn.Module):
        if input_shape is None:
            raise InputError(
                "a PyTorch module needs input_shape=(H, W, C), or (D,) of feature vectors"
            )
        return from_torch(
            victim,
            input_shape,
            num_classes,
            gives=gives or "logits",  # type: ignore[arg-type]
            **normalisation,
        )
    if normalisation:
        raise InputError(
            f"{' and '.join(normalisation)} belong to a PyTorch module; other victims normalise "
            "themselves"
        )
    toolbox = sys.modules.get("art.estimators.classification")
    if toolbox is not None and isinstance(victim, toolbox.ClassifierMixin):
        return from_art(victim, input_shape, num_classes, gives)
    base = sys.modules.get("sklearn.base")
    if base is not None and isinstance(victim, base.BaseEstimator):
        return from_sklearn(victim, input_shape, num_classes)
    if not isinstance(victim, HostVictim):
        return None
    for what, given, own in (
        ("input_shape", input_shape, victim.input_shape),
        ("num_classes", num_classes, victim.num_classes),
    ):
        if given is not None and given != own:
            raise InputError(f"{what} is {own} for victim {victim.name!r}, not {given}")
    return victim


__all__ = [
    "Prepared",
    "as_host_victim",
    "from_art",
    "from_sklearn",
    "from_torch",
    "prepared_for",
    "torch_predict",
    "traced_torch",
]
