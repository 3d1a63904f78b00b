"""Victims in the two forms that an oracle takes: callable pytrees, and functions on the host."""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
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
      repeatable: whether `predict` computes in this process, so that asking again costs nobody
        anything; not so of one that calls somebody who charges. See `Metered`.
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
            raise InputError(
                f"{self.name}: a classifier has at least 2 classes, got {self.num_classes}"
            )
        if not self.input_shape or any(size < 1 for size in self.input_shape):
            raise InputError(
                f"{self.name}: input_shape must be (H, W, C), (D,) or such, got {self.input_shape}"
            )
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
        raise InputError(
            f"rows must be (B, {', '.join(map(str, victim.input_shape))}), got shape {rows.shape}"
        )
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
            check_logits(values)
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
            f"answered shape {answers.shape} of type {answers.dtype}, which is none of numbers; "
            "return float32, float64 or integers"
        )
    if answers.dtype.itemsize == 2 and answers.dtype.kind not in "iu":
        precision = answers.dtype
    if precision is not None:
        warnings.warn(
            f"victim {name!r} answers in {precision}: differences that it rounds away cannot be "
            "seen, and logits recovered from small probabilities are wrong; return float32 of a "
            "model that computes in it",
            PrecisionWarning,
            stacklevel=3,
        )
    return answers


def answer_kind(
    values: np.ndarray,
) -> Literal["label", "probabilities", "log_probabilities", "unit", "logits"]:
    """What answers are by their looks.

    Args:
      values: (B, K) of two or more rows, or (B,).

    Returns:
      ``label``: whole numbers (B,). ``probabilities``: none is negative and every row sums to one,
      which in two rows is no coincidence. ``log_probabilities``: the same of their exponentials.
      ``unit``: all lie in [0, 1] and do not sum to one, as sigmoids do and logits hardly. Else
      ``logits``.
    """
    if values.ndim == 1 and values.dtype.kind in "iub":
        return "label"
    if len(values) < 2 or values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "fV":
        return "logits"
    precise = values.astype(np.float64)
    slack = max(1e-5, values.shape[1] * float(jnp.finfo(values.dtype).eps))
    sums = lambda shares: bool(np.abs(shares.sum(1) - 1).max() <= slack)
    if precise.min() >= 0 and sums(precise):
        return "probabilities"
    if precise.max() <= slack and sums(np.exp(precise)):
        return "log_probabilities"
    return "unit" if precise.min() >= 0 and precise.max() <= 1 else "logits"


def check_logits(values: np.ndarray) -> None:
    """Raises `InputError` where logits were declared and `answer_kind` sees probabilities."""
    if answer_kind(values) == "probabilities":
        raise InputError(
            "answers probabilities where logits were declared; say gives='probabilities'"
        )


def from_jax(
    function: Callable[..., Array],
    *parameters: Any,
    input_shape: Shape,
    num_classes: int | None = None,
) -> Partial:
    """A traceable victim from ``function(*parameters, rows) -> (B, K)``; its parameters travel as
    arguments.

    Args:
      function: module-level, so that its identity keeps compiled programs.
      *parameters: pytrees, or `Static` values.
      input_shape: of a row. num_classes: K, checked when given.

    Raises:
      InputError: if JAX cannot trace it, or it answers something else than (B, K) floats, or NaN
        for random rows.
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
    if (
        getattr(made, "ndim", 0) != 2
        or made.shape[0] != 2
        or (num_classes and made.shape[1] != num_classes)
    ):
        raise InputError(
            f"{name} must answer 2 rows with shape (2, {wanted}), got "
            f"{getattr(made, 'shape', type(made))}"
        )
    if not jnp.issubdtype(made.dtype, jnp.floating):
        raise InputError(f"{name} must answer floats, got {made.dtype}")
    if not np.isfinite(np.asarray(jax.jit(victim)(probe_rows(input_shape, 4)), np.float32)).all():
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
    """A host victim from any ``predict(rows (B, ...)) -> array``. It is not called before an attack
    asks.

    Say ``repeatable=True`` of a function that computes here and asks nobody who charges: rows that
    were under way when a run was killed are then not paid again.
    """
    if not callable(predict):
        raise InputError(f"predict must be a function of rows, got {type(predict).__name__}")
    shown = name or getattr(predict, "__name__", "function")
    return HostVictim(predict, num_classes, input_shape, gives, shown, None, batch_size, repeatable)


def as_shape(shape: Any) -> Shape:
    """Of a row, as a tuple of whole numbers, whatever sequence it came in."""
    return tuple(int(size) for size in shape)


def probe_rows(input_shape: Shape, rows: int) -> Array:
    return jax.random.uniform(jax.random.key(0), (rows, *input_shape))


__all__ = [
    "HostVictim",
    "PrecisionWarning",
    "Shape",
    "answer_kind",
    "as_numbers",
    "as_shape",
    "check_logits",
    "from_function",
    "from_jax",
    "probe_rows",
    "victim_values",
]
