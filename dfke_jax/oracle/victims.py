"""Victims of every make, as the two forms that an oracle takes: callable pytrees, and functions on the host."""

import dataclasses
import importlib
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Static
from dfke_jax.core.types import Array
from dfke_jax.oracle.reveal import Reveal, check_answers

Shape = tuple[int, ...]
"""Of one row: (H, W, C) of an image, (D,) of a feature vector, ..."""


class PrecisionWarning(UserWarning):
    """A victim answers with fewer digits than float32 has."""


@dataclasses.dataclass(frozen=True)
class HostVictim:
    """A victim on the host.

    Attributes:
      predict: NumPy rows (B, ...), float32 (or float64) -> array (B, K), or (B,) integer
        labels. A PyTorch tensor will do, on any device and with or without a gradient.
      num_classes: K. input_shape: of a row, of any rank: (H, W, C) of images, (D,) of feature
        vectors.
      gives: what `predict` returns: ``logits``, ``probabilities`` or ``label``. The K values of a
        regressor are logits in this sense: real numbers without bounds; it may have one.
      name: for messages and results.
      classes: what the K columns mean, where the victim says so.
      batch_size: rows per call; None for all at once.
      repeatable: whether `predict` computes in this process, so that asking again costs nobody anything; not so of one that
        calls somebody who charges. See `Metered`.
    """

    predict: Callable[[np.ndarray], Any]
    num_classes: int
    input_shape: Shape
    gives: Literal["logits", "probabilities", "label"] = "probabilities"
    name: str = "function"
    classes: tuple[Any, ...] | None = None
    batch_size: int | None = None
    repeatable: bool = False

    def __post_init__(self):
        if self.gives not in ("logits", "probabilities", "label"):
            raise InputError(f"a victim gives logits, probabilities or label, not {self.gives!r}")
        if self.num_classes < (1 if self.gives == "logits" else 2):
            raise InputError(f"{self.name}: a classifier has at least 2 classes, got {self.num_classes}")
        if not self.input_shape or any(size < 1 for size in self.input_shape):
            raise InputError(f"{self.name}: input_shape must be (H, W, C), (D,) or such, got {self.input_shape}")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"{self.name}: batch_size must be at least 1, got {self.batch_size}")

    @property
    def on_host(self) -> bool:
        """It is called with NumPy rows."""
        return True

    def __call__(self, rows: Any) -> np.ndarray:
        return victim_values(self, rows)


def victim_values(victim: HostVictim, rows: Any) -> np.ndarray:
    """What a host victim computes, checked.

    Args:
      rows: (B, ...); float64 stays float64, anything else becomes float32.

    Returns:
      (B, K) in the precision of the rows, or (B,) int32 labels.

    Raises:
      InputError: rows of another shape; or another number of rows or classes, NaN, labels out of
        range, what are no numbers (dtype object), probabilities that are negative or do not sum to
        one, or logits that are probabilities: two or more rows, none with a negative number, that
        all sum to one within 1e-5.

    Warns:
      PrecisionWarning: answers in half precision, whose rounding hides small differences: 1e-3 of a
        float16.
    """
    rows = np.asarray(rows)
    rows = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32, copy=False)
    if rows.ndim != 1 + len(victim.input_shape) or rows.shape[1:] != tuple(victim.input_shape):
        raise InputError(f"rows must be (B, {', '.join(map(str, victim.input_shape))}), got shape {rows.shape}")
    size = victim.batch_size or max(len(rows), 1)
    answered = [victim.predict(rows[start : start + size]) for start in range(0, len(rows), size)]
    try:
        parts = [as_numbers(part, victim.name) for part in answered]
        for part in parts:
            if part.ndim != (1 if victim.gives == "label" else 2):
                raise InputError(f"gives {victim.gives}, but answered shape {part.shape}")
        values = np.concatenate(parts)
        check_answers(values, len(rows), victim.num_classes, Reveal(victim.gives))
        if victim.gives == "logits":
            _check_logits(values)
    except (InputError, ValueError) as error:
        raise InputError(f"victim {victim.name!r}: {error}") from error
    return values.astype(np.int32 if victim.gives == "label" else rows.dtype)


def as_numbers(answers: Any, name: str) -> np.ndarray:
    """An array from what a victim called `name` returned: from a PyTorch tensor, its values.

    Raises:
      InputError: for what are no numbers.

    Warns:
      PrecisionWarning: for half precision.
    """
    torch = sys.modules.get("torch")
    precision = None
    if torch is not None and isinstance(answers, torch.Tensor):
        answers = answers.detach().cpu()
        if answers.dtype == torch.bfloat16:  # NumPy has no such type
            precision, answers = answers.dtype, answers.float()
        answers = answers.resolve_conj().resolve_neg().numpy()
    answers = np.asarray(answers)
    if answers.dtype.kind not in "biuf" and answers.dtype.name != "bfloat16":
        raise InputError(
            f"answered shape {answers.shape} of type {answers.dtype}, which is none of numbers; return float32, float64 "
            "or integers"
        )
    if answers.dtype.itemsize == 2 and answers.dtype.kind not in "iu":
        precision = answers.dtype
    if precision is not None:
        warnings.warn(
            f"victim {name!r} answers in {precision}: differences that it rounds away cannot be seen, and logits recovered "
            "from small probabilities are wrong; return float32 of a model that computes in it",
            PrecisionWarning,
            stacklevel=3,
        )
    return answers


def _check_logits(values: np.ndarray) -> None:
    """Whether logits can be such; nonnegative numbers that sum to one row by row are no coincidence in two rows."""
    if len(values) < 2 or values.shape[1] < 2 or values.dtype.kind != "f":
        return
    slack = max(1e-5, values.shape[1] * float(jnp.finfo(values.dtype).eps))
    if values.min() >= 0 and np.abs(values.sum(1, dtype=np.float64) - 1).max() <= slack:
        raise InputError("answers probabilities where logits were declared; say gives='probabilities'")


def from_jax(
    function: Callable[..., Array], *parameters: Any, input_shape: Shape, num_classes: int | None = None
) -> Partial:
    """A traceable victim from ``function(*parameters, rows) -> (B, K)``; its parameters travel as arguments.

    Args:
      function: module-level, so that its identity keeps compiled programs.
      *parameters: pytrees, or `Static` values.
      input_shape: of a row. num_classes: K, checked when given.

    Raises:
      InputError: if JAX cannot trace it, or it answers something else than (B, K) floats, or NaN for random rows.
    """
    victim = Partial(function, *parameters)
    name = getattr(function, "__name__", type(function).__name__)
    try:
        made = jax.eval_shape(victim, jax.ShapeDtypeStruct((2, *input_shape), jnp.float32))
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise InputError(
            f"{name} is not traceable by JAX; use victims.from_function, which runs it on the host"
        ) from error
    wanted = num_classes or "K"
    if getattr(made, "ndim", 0) != 2 or made.shape[0] != 2 or (num_classes and made.shape[1] != num_classes):
        raise InputError(
            f"{name} must answer 2 rows with shape (2, {wanted}), got {getattr(made, 'shape', type(made))}"
        )
    if not jnp.issubdtype(made.dtype, jnp.floating):
        raise InputError(f"{name} must answer floats, got {made.dtype}")
    if not np.isfinite(np.asarray(jax.jit(victim)(_probe(input_shape, 4)), np.float32)).all():
        raise InputError(f"{name} answers NaN or infinity for random rows in [0, 1]")
    return victim


def from_function(
    predict: Callable[[np.ndarray], Any],
    input_shape: Shape,
    num_classes: int,
    *,
    gives: Literal["logits", "probabilities", "label"] = "probabilities",
    name: str | None = None,
    batch_size: int | None = None,
    repeatable: bool = False,
) -> HostVictim:
    """A host victim from any ``predict(rows (B, ...)) -> array``. It is not called before an attack asks.

    Say ``repeatable=True`` of a function that computes here and asks nobody who charges: rows that were under way when a run
    was killed are then not paid again.
    """
    if not callable(predict):
        raise InputError(f"predict must be a function of rows, got {type(predict).__name__}")
    shown = name or getattr(predict, "__name__", "function")
    return HostVictim(predict, num_classes, input_shape, gives, shown, None, batch_size, repeatable)


def from_sklearn(estimator: Any, input_shape: Shape | None = None, num_classes: int | None = None) -> HostVictim:
    """A host victim from a fitted scikit-learn estimator or pipeline; rows are flattened in the order of their axes.

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
            raise InputError(f"{name} knows the classes {classes.tolist()}, not {num_classes} of them")
    meaning = tuple(range(count)) if num_classes is not None and count != len(classes) else tuple(classes.tolist())

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
    return HostVictim(probabilities if soft else labels, count, input_shape, gives, name, meaning, repeatable=True)


def _features(estimator: Any, input_shape: Shape | None) -> Shape:
    """The shape of a row, which must have as many numbers as the estimator takes."""
    name, features = type(estimator).__name__, getattr(estimator, "n_features_in_", None)
    if input_shape is None:
        if features is None:
            raise InputError(f"{name} does not say how many features it takes; give input_shape")
        return 1, 1, int(features)
    if features is not None and math.prod(input_shape) != features:
        raise InputError(f"{name} takes {features} features, rows of {input_shape} have {math.prod(input_shape)}")
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
    """A host victim from a PyTorch module. It is put in eval mode, stays there, and runs without gradients.

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
    torch = importlib.import_module("torch")
    name = type(module).__name__
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    device, precision = device or str(first.device), first.dtype
    module.to(device).eval()
    prepared = _prepared(input_shape, layout, mean, std)

    def predict(rows: np.ndarray) -> np.ndarray:
        module.eval()
        with torch.no_grad():
            answers = module(torch.from_numpy(np.array(prepared(rows, np), order="C")).to(device, precision))
        if not isinstance(answers, torch.Tensor):
            raise InputError(f"{name} returns {type(answers).__name__}; wrap it so that it returns one tensor (B, K)")
        return answers

    probe = as_numbers(predict(np.asarray(_probe(input_shape, 2))), name)
    if probe.ndim != 2 or len(probe) != 2 or (num_classes and probe.shape[1] != num_classes):
        raise InputError(f"{name} must answer 2 rows with shape (2, {num_classes or 'K'}), got {probe.shape}")
    if gives == "logits":
        try:
            _check_logits(probe)
        except InputError as error:
            raise InputError(f"{name} {error}") from error
    return HostVictim(predict, probe.shape[1], input_shape, gives, name, None, batch_size, repeatable=True)


def traced_torch(
    module: Any,
    input_shape: Shape,
    *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    tolerance: float = 1e-3,
) -> Partial:
    """A PyTorch module as a traceable victim, through the package torch2jax (``t2j``), if that agrees with the original.

    Args:
      tolerance: the largest difference on 16 random rows, relative to the largest answer (at least 1).
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
            "tracing a PyTorch module needs the package torch2jax with its function t2j (pip install torch2jax); "
            "victims.from_torch runs the module on the host without it"
        ) from error
    original = from_torch(module, input_shape, layout=layout, mean=mean, std=std)
    state = {key: jnp.asarray(value.detach().cpu().numpy()) for key, value in module.state_dict().items()}
    prepared = Static(_Prepared(as_shape(input_shape), layout, tuple(mean), tuple(std)))
    rows = _probe(input_shape, 16)
    expected = victim_values(original, rows)
    try:
        victim = Partial(_traced, Static(t2j(module)), prepared, state)
        found = np.asarray(jax.jit(victim)(rows))
    except Exception as error:
        raise InputError(
            f"torch2jax cannot convert {name} ({type(error).__name__}: {error}); use victims.from_torch"
        ) from error
    if found.shape != expected.shape:
        raise InputError(f"torch2jax answers shape {found.shape} for {name}, PyTorch {expected.shape}")
    apart = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    if not apart <= tolerance:
        raise InputError(
            f"torch2jax and PyTorch differ by {apart:.2g} for {name} on random rows, more than {tolerance:g}; "
            "use victims.from_torch"
        )
    return victim


def _traced(converted: Static, prepared: Static, state: dict[str, Array], rows: Array) -> Array:
    with jax.numpy_rank_promotion("allow"):  # PyTorch's broadcasting, whatever is set for the rest of the program
        return converted.value(prepared.value(rows, jnp), state_dict=state)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """From rows to a module's input, in NumPy or JAX."""

    input_shape: Shape
    layout: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, rows: Any, numpy: Any) -> Any:
        shape = (*(1,) * len(self.input_shape), self.input_shape[-1])
        mean, std = (np.broadcast_to(np.asarray(v, np.float32), shape) for v in (self.mean, self.std))
        if self.mean != (0.0,) or self.std != (1.0,):
            rows = (rows - mean) / std
        images = len(self.input_shape) == 3
        return numpy.transpose(rows, (0, 3, 1, 2)) if images and self.layout == "NCHW" else rows


def _prepared(input_shape: Shape, layout: str, mean: tuple[float, ...], std: tuple[float, ...]) -> _Prepared:
    if layout not in ("NCHW", "NHWC"):
        raise InputError(f"layout must be 'NCHW' or 'NHWC', not {layout!r}")
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, input_shape[-1]):
            of = f"images of {input_shape[2]} channels" if len(input_shape) == 3 else f"rows of shape {input_shape}"
            raise InputError(f"{what} has {len(values)} values for {of}")
    if min(std) <= 0:
        raise InputError(f"std must be positive, got {std}")
    return _Prepared(as_shape(input_shape), layout, tuple(mean), tuple(std))


def as_host_victim(
    victim: Any, input_shape: Shape | None, num_classes: int | None, gives: str | None = None, **normalisation: Any
) -> HostVictim | None:
    """A host victim from a `HostVictim`, a PyTorch module or a scikit-learn estimator; None for anything else.

    Args:
      gives: of a PyTorch module, as of `from_torch`.
      **normalisation: `mean` and `std` of a PyTorch module, as of `from_torch`.

    Raises:
      InputError: if shape or classes disagree with the victim's own, a module comes without a
        shape, or another victim with a normalisation.
    """
    torch = sys.modules.get("torch")  # a module cannot exist before torch was imported
    if torch is not None and isinstance(victim, torch.nn.Module):
        if input_shape is None:
            raise InputError("a PyTorch module needs input_shape=(H, W, C), or (D,) of feature vectors")
        return from_torch(victim, input_shape, num_classes, gives=gives or "logits", **normalisation)  # type: ignore[arg-type]
    if normalisation:
        raise InputError(
            f"{' and '.join(normalisation)} belong to a PyTorch module; other victims normalise themselves"
        )
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


def as_shape(shape: Any) -> Shape:
    """Of a row, as a tuple of whole numbers, whatever sequence it came in."""
    return tuple(int(size) for size in shape)


def _probe(input_shape: Shape, rows: int) -> Array:
    return jax.random.uniform(jax.random.key(0), (rows, *input_shape))


__all__ = ["HostVictim", "PrecisionWarning", "as_host_victim", "as_numbers", "as_shape", "from_function", "from_jax", "from_sklearn", "from_torch", "traced_torch",
           "victim_values"]  # fmt: skip
