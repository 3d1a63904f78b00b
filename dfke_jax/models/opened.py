"""A model that was opened: what it takes, what it answers, and how it is asked."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from dfke_jax.core.errors import DfkeError, InputError
from dfke_jax.models.declared import Declared, times
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.oracle import (
    Defence,
    HostOracle,
    HostVictim,
    Oracle,
    RemoteVictim,
    Reveal,
    oracle_for,
)
from dfke_jax.oracle.victims import answer_kind, as_numbers

Gives = Literal["logits", "probabilities", "label"]
Transport = Literal["float32", "float64", "uint8"]
ANSWERS = (
    "extraction from answers (dfme, knockoff, ...), dataset inference (blind_walk) and watermark "
    "verification"
)
"""What can be done with a model of which nothing but its answers is known."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What an opener found; `opened` asks it two rows and makes an `OpenedModel` of it.

    Attributes:
      kind: of model, in words. name: of this one.
      ask: NumPy rows (B, ...) -> answers, on the host; or
      traced: a `Classifier`, or another callable pytree, rows -> (B, K), that JAX can trace; or
      remote: an endpoint of this package, which says itself what it is.
      input_shape: of a row. num_classes: K, where the model says it.
      gives: what it answers, where it says so. box: of rows, where it says so.
      classes: what the columns mean.
      batch_size: rows per call. repeatable: asking again costs nobody anything.
      adapt: what it answers -> the model as a `WhiteBox`, for kinds that can be read as a network.
      close: ends what was started. notes: what is to be said.
    """

    kind: str
    name: str
    input_shape: tuple[int, ...]
    ask: Callable[[np.ndarray], Any] | None = None
    traced: Any = None
    remote: RemoteVictim | None = None
    num_classes: int | None = None
    gives: Gives | None = None
    box: tuple[float, float] | None = None
    classes: tuple[Any, ...] | None = None
    batch_size: int | None = None
    repeatable: bool = True
    adapt: Callable[[Gives], WhiteBox] | None = None
    close: Callable[[], None] | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A model of any kind, opened and asked two rows; use it in a ``with`` block, or `close` it.

    Attributes:
      kind: of model, in words. name: of this one.
      victim: what attacks and tests take: a `Classifier`, another callable pytree, a `HostVictim`,
        or a `RemoteVictim`.
      num_classes: K. input_shape: of a row. box: lowest and highest pixel value.
      gives: ``logits``, ``probabilities`` or ``label``, as was found.
      on_host: whether it answers on the host, and not inside a compiled program.
      notes: what was recognised and should be known.
    """

    kind: str
    name: str
    victim: Any
    num_classes: int
    input_shape: tuple[int, ...]
    gives: Gives
    box: tuple[float, float]
    on_host: bool
    notes: tuple[str, ...] = ()
    _close: Callable[[], None] | None = None
    _adapt: Callable[[Gives], WhiteBox] | None = None

    @functools.cached_property
    def _white(self) -> tuple[WhiteBox | None, str]:
        """The white box, or why there is none."""
        if isinstance(self.victim, Classifier) and self.gives == "logits":
            return self.victim, ""
        if self._adapt is None:
            return (
                None,
                f"it is opened as {self.kind}, which answers {self.gives} and shows nothing else",
            )
        try:
            return self._adapt(self.gives), ""
        except InputError as error:
            return None, str(error)

    @property
    def classifier(self) -> WhiteBox | None:
        """The network that white-box methods take, or None for a model that answers only.

        A saved model is a `Classifier`; modules of Linen, NNX, Equinox and PyTorch are traced when
        this is first asked for, and checked against their own answers (`dfke_jax.nn.adapters`).
        """
        return self._white[0]

    @property
    def white_box(self) -> bool:
        """Whether white-box methods take it."""
        return self.classifier is not None

    def needed_classifier(self, what: str) -> WhiteBox:
        """The network, for `what` that needs more than answers.

        Raises:
          InputError: there is none; the message says why, and what can be done instead.
        """
        found, why = self._white
        if found is None:
            raise InputError(
                f"{what} needs a network, and {self.name} shows none: {why}; possible are {ANSWERS}"
            )
        return found

    def __call__(self, rows: Any) -> np.ndarray:
        """Rows (B, ...) -> answers on the host, as `gives` says; (B, K), or (B,) labels."""
        if self.on_host:
            return np.asarray(self.victim(rows))
        return np.asarray(_answers(self.victim, np.asarray(rows, np.float32)))

    def oracle(
        self,
        reveal: Reveal | None = None,
        defences: Sequence[Defence] = (),
        *,
        transport: Transport = "float32",
    ) -> "Oracle | HostOracle | RemoteVictim":
        """The model behind an endpoint's rules, for ``against(attack, oracle)``.

        Args:
          reveal: probabilities by default, or the label of a model that gives nothing else.
          defences, transport: as of `oracle_for`.

        Raises:
          InputError: rules that the model, or an endpoint that has its own, cannot keep.
        """
        if isinstance(self.victim, RemoteVictim):
            if defences or transport != "float32" or reveal not in (None, self.victim.reveal):
                raise InputError(
                    f"{self.name} is an endpoint and has rules of its own: it reveals "
                    f"{self.victim.reveal}"
                )
            return self.victim
        known = {} if self.on_host else {"input_shape": self.input_shape, "gives": self.gives}
        return oracle_for(self.victim, reveal, defences, box=self.box, transport=transport, **known)  # type: ignore[arg-type]

    def describe(self) -> str:
        """In a line or two."""
        low, high = self.box
        said = (
            f"{self.name}: {self.kind}, rows {times(self.input_shape)} in [{low:g}, {high:g}], "
            f"{self.num_classes} classes, "
        )
        return "\n".join([said + f"answers {self.gives}", *(f"  {note}" for note in self.notes)])

    def close(self) -> None:
        """Ends what was started to ask it: a process, connections."""
        if self._close is not None:
            self._close()

    def __enter__(self) -> "OpenedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def opened(found: Found, said: Declared) -> OpenedModel:
    """Asks two rows, and holds what they are answered against what is declared.

    An endpoint of this package is not asked: it describes itself, every one of its answers is
    checked, and a question costs.

    Raises:
      InputError: another number of classes, NaN, answers of another kind than declared, or of none.
    """
    box = said.box or found.box or (0.0, 1.0)
    if None not in (said.box, found.box) and said.box != found.box:
        raise InputError(
            f"{found.name} takes values in {found.box}, and box={said.box} is declared"
        )
    if found.remote is not None:
        return _remote(found, said, box)
    rows = np.random.default_rng(0).uniform(*box, (2, *found.input_shape)).astype(np.float32)
    ask = found.ask or functools.partial(_answers, found.traced)
    try:
        values = as_numbers(ask(rows), found.name)
    except DfkeError:
        raise
    except Exception as error:  # whatever a stranger's model raises
        shown = str(error).strip().splitlines()[:1] or [""]
        raise InputError(
            f"{found.name} fails when it is asked two rows of {times(found.input_shape)}: "
            f"{type(error).__name__}: {shown[0]:.300}"
        ) from error
    gives, note = recognised(values, said.gives or found.gives, found.name)
    classes = _classes(values, gives, found, said)
    notes = (*found.notes, *note)
    if found.traced is not None:
        victim: Any = found.traced
    else:
        assert found.ask is not None
        size = said.batch_size or found.batch_size
        victim = HostVictim(
            found.ask,
            classes,
            found.input_shape,
            gives,
            found.name,
            found.classes,
            size,
            found.repeatable,
        )
    host = found.traced is None
    return OpenedModel(
        found.kind,
        found.name,
        victim,
        classes,
        found.input_shape,
        gives,
        box,
        host,
        notes,
        found.close,
        found.adapt,
    )


def recognised(values: np.ndarray, said: Gives | None, name: str) -> tuple[Gives, tuple[str, ...]]:
    """What two rows' answers are, and what is to be said of it.

    Probabilities are taken as they are, and never put through a softmax again.

    Raises:
      InputError: they are nothing that a classifier answers, or not what is declared.
    """
    if values.ndim == 1 and values.dtype.kind == "f":
        raise InputError(
            f"{name} answers one number a row; wrap it so that it answers (B, K), or whole numbers "
            "as labels"
        )
    if values.ndim not in (1, 2) or len(values) != 2:
        raise InputError(
            f"{name} must answer 2 rows with shape (2, K), or (2,) labels, got {values.shape}"
        )
    if not np.isfinite(values.astype(np.float64)).all():
        raise InputError(f"{name} answers NaN or infinity for random rows")
    kind = answer_kind(values)
    if kind == "label" or said == "label":
        if kind != "label" or said not in (None, "label"):
            shape = "labels" if kind == "label" else f"{values.shape[1]} numbers a row"
            raise InputError(f"{name} answers {shape}, and gives={said} is declared")
        return "label", ()
    if values.shape[1] < 2 and said != "logits":
        raise InputError(
            f"{name} answers one number a row; wrap it so that it answers a number for each class"
        )
    if kind == "probabilities":
        if said == "logits":
            raise InputError(
                f"{name} answers probabilities (rows that sum to one), and gives=logits is declared"
            )
        return "probabilities", (
            "answers are probabilities and taken as they are: no softmax is applied",
        )
    if said == "probabilities":
        sums = ", ".join(f"{total:.4g}" for total in values.sum(1))
        raise InputError(
            f"{name} answers no probabilities, which gives=probabilities declares: rows sum to "
            f"{sums}"
        )
    if kind == "log_probabilities":
        return "logits", (
            "answers are log-probabilities: their softmax is the probabilities themselves",
        )
    if kind == "unit" and said is None:
        raise InputError(
            f"{name} answers numbers in [0, 1] that do not sum to one, as sigmoids do; declare "
            "gives=logits if a softmax of them is meant, or wrap it so that it answers "
            "probabilities"
        )
    return "logits", ()


def _classes(values: np.ndarray, gives: Gives, found: Found, said: Declared) -> int:
    counts = {count for count in (said.num_classes, found.num_classes) if count is not None}
    if gives != "label":
        counts.add(values.shape[1])
    if not counts:
        raise InputError(
            f"{found.name} answers labels, which do not say how many classes there are; declare "
            "classes=K"
        )
    if len(counts) > 1:
        own = values.shape[1] if gives != "label" else found.num_classes
        raise InputError(
            f"{found.name} has {own} classes, and not {said.num_classes or found.num_classes}"
        )
    count = counts.pop()
    if gives == "label" and not 0 <= values.min() <= values.max() < count:
        raise InputError(
            f"{found.name} answers labels from {values.min()} to {values.max()}, not 0 to "
            f"{count - 1}"
        )
    return count


def _remote(found: Found, said: Declared, box: tuple[float, float]) -> OpenedModel:
    remote = found.remote
    assert remote is not None
    kinds = {"logits": "logits", "label": "label"}
    gives: Any = kinds.get(remote.reveal.kind, "probabilities")
    if said.gives not in (None, gives):
        raise InputError(
            f"{found.name} reveals {remote.reveal.kind}, and gives={said.gives} is declared"
        )
    return OpenedModel(
        found.kind,
        found.name,
        remote,
        remote.num_classes,
        remote.input_shape,
        gives,
        box,
        True,
        found.notes,
        found.close,
    )


@jax.jit
def _answers(model: Any, rows: Any) -> Any:
    return model(rows)


__all__ = ["ANSWERS", "Found", "Gives", "OpenedModel", "opened", "recognised"]
