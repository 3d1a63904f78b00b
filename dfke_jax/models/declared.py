"""What somebody says of a model, as far as the model does not say it itself."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dfke_jax.core.errors import InputError, UnknownNameError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Declared:
    """What is said of a model; None where nothing is.

    What contradicts the model is refused, and so is what its kind has no use for.

    Attributes:
      num_classes: K. input_shape: of a row: (H, W, C) of images, (D,) of feature vectors.
      gives: ``logits``, ``probabilities`` or ``label``; log-probabilities are logits.
      box: lowest and highest pixel value of rows.
      mean, std: the model gets (x − mean)/std of a row x; one number, or one per channel.
      layout: of the images that it gets, ``NCHW`` or ``NHWC``.
      network: a name of the registry. size, fit: of its preprocessing, as of `Preprocessing`.
      weights: a file of them, for a class or a function that makes the model.
      batch_size: rows per call.
      trusted: the file is one's own: code in it may run in this process.
      key: API key. request, encoding, answer: how an endpoint that is not this package's is asked;
        see `dfke_jax.models.openers.foreign_endpoint`. `answer` is also the output of an ONNX
        graph.
      module: the Flax module of saved variables, where its class is not this package's.
    """

    num_classes: int | None = None
    input_shape: Shape | None = None
    gives: Literal["logits", "probabilities", "label"] | None = None
    box: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    network: str | None = None
    size: tuple[int, int] | None = None
    fit: Literal["pad", "bilinear", "nearest"] | None = None
    weights: str | None = None
    batch_size: int | None = None
    trusted: bool | None = None
    key: str | None = None
    request: str | None = None
    encoding: str | None = None
    answer: str | None = None
    module: Any = None

    def __post_init__(self):
        if self.gives not in (None, "logits", "probabilities", "label"):
            raise InputError(f"a model gives logits, probabilities or label, not {self.gives!r}")
        if self.layout not in (None, "NCHW", "NHWC"):
            raise InputError(f"layout must be NCHW or NHWC, not {self.layout!r}")
        if self.num_classes is not None and self.num_classes < 1:
            raise InputError(f"classes must be at least 1, got {self.num_classes}")
        if self.input_shape is not None and (not self.input_shape or min(self.input_shape) < 1):
            raise InputError(f"shape must be H,W,C or D, each at least 1, got {self.input_shape}")
        if self.box is not None and not (len(self.box) == 2 and self.box[0] < self.box[1]):
            raise InputError(f"box must be low,high with low < high, got {self.box}")
        if self.std is not None and not (self.std and min(self.std) > 0):
            raise InputError(f"std must be positive, got {self.std}")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch must be at least 1, got {self.batch_size}")

    def given(self) -> dict[str, Any]:
        """What is said, by name."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }

    def only(self, *names: str, kind: str) -> None:
        """Raises `InputError` where more is said than these, and what every kind has a use for."""
        extra = [name for name in self.given() if name not in (*names, *_OF_EVERY_KIND)]
        if extra:
            takes = ", ".join(shown(name) for name in (*_OF_EVERY_KIND, *names))
            raise InputError(
                f"{kind} has no {' and no '.join(map(shown, extra))}; what can be declared is "
                f"{takes}"
            )

    def shape(self, found: Sequence[int] | None, of: str) -> Shape:
        """The shape of a row, declared or found; both must agree.

        Raises:
          InputError: they do not, or there is neither.
        """
        if found is None and self.input_shape is None:
            raise InputError(
                f"{of} does not say what it takes; declare shape=H,W,C (or shape=D of feature "
                "vectors)"
            )
        own = self.input_shape if found is None else tuple(int(size) for size in found)
        assert own is not None
        if self.input_shape not in (None, own):
            raise InputError(
                f"{of} takes rows of {times(own)}, and {times(self.input_shape or ())} are declared"
            )
        return own


_OF_EVERY_KIND = ("num_classes", "input_shape", "gives", "box", "batch_size")
_SHORT = {"num_classes": "classes", "input_shape": "shape", "batch_size": "batch"}
_WORDS = {"trusted": bool, "num_classes": int, "batch_size": int}
_NUMBERS = {"input_shape": int, "size": int, "box": float, "mean": float, "std": float}


def shown(name: str) -> str:
    """A field as it is written on a command line."""
    return _SHORT.get(name, name)


def times(shape: Sequence[int]) -> str:
    """A shape in words: 28×28×1."""
    return "×".join(map(str, shape)) or "()"


def declared(texts: Sequence[str]) -> Declared:
    """What is said on a command line.

    Args:
      texts: ``NAME=VALUE`` each; lists of numbers have commas.

    Raises:
      UnknownNameError: no such name. InputError: a value that is none, or a name twice.

    >>> declared(["shape=28,28,1", "mean=0.5", "gives=logits"]).given()
    {'input_shape': (28, 28, 1), 'gives': 'logits', 'mean': (0.5,)}
    """
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value.strip():
            raise InputError(f"cannot read {text!r}; write NAME=VALUE, for instance shape=28,28,1")
        pairs.append((name.strip(), value.strip()))
    return from_pairs(pairs)


def from_pairs(pairs: Sequence[tuple[str, Any]]) -> Declared:
    """The same from names and values; values are text, or what a TOML file holds."""
    known = {
        shown(field.name): field.name
        for field in dataclasses.fields(Declared)
        if field.name != "module"
    }
    values: dict[str, Any] = {}
    for name, value in pairs:
        field = known.get(name, name)
        if field not in known.values():
            raise UnknownNameError("declaration", name, known)
        if field in values:
            raise InputError(f"{name} is declared twice")
        values[field] = _read(name, field, value)
    return Declared(**values)


def _read(name: str, field: str, value: Any) -> Any:
    try:
        if field in _NUMBERS:
            parts = value if isinstance(value, list) else str(value).split(",")
            return tuple(_NUMBERS[field](part) for part in parts)
        if _WORDS.get(field) is bool:
            return {"true": True, "false": False}[str(value).lower()]
        return _WORDS.get(field, str)(value)
    except (ValueError, TypeError, KeyError):
        wanted = (
            "true or false"
            if _WORDS.get(field) is bool
            else "numbers with commas"
            if field in _NUMBERS
            else "a whole number"
        )
        raise InputError(f"{name} must be {wanted}, got {value!r}") from None


def existing(path: str | Path, what: str) -> Path:
    """A file that is there.

    Raises:
      InputError: it is not.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise InputError(f"there is no file {found}; {what}")
    return found


__all__ = ["Declared", "Shape", "declared", "existing", "from_pairs", "shown", "times"]
