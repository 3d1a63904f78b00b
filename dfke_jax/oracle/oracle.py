"""The oracle: a victim behind its defences, seen through what the endpoint reveals.

victim -> logits -> softmax -> defences -> reveal. Two forms with one meaning: `Oracle` is traced
into the attack's program, `HostOracle` answers on the host between two compiled halves.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.classifier import Classifier
from dfke_jax.oracle.defences import TINY, Defence
from dfke_jax.oracle.frameworks import as_host_victim
from dfke_jax.oracle.reveal import Reveal, check_answers
from dfke_jax.oracle.victims import HostVictim, as_shape, victim_values
from dfke_jax.synthesis.zeroth_order import cache_chunk, in_chunks

Transport = Literal["float32", "float64", "uint8"]
Gives = Literal["logits", "probabilities", "label"]
Box = tuple[float, float]


class ZerothOrderWarning(UserWarning):
    """Finite differences of these answers are mostly zero or mostly noise."""


def transported(rows: Array, transport: Transport, box: Box) -> Array:
    """What arrives of the rows: floats as they are, or the 256 levels of the box.

    ``float64`` needs 64-bit JAX (`jax.enable_x64`) and is for attacks that solve equations.
    ``uint8`` is round(255·(x − low)/(high − low)) and back; what lies outside the box is clipped,
    as an image file would.

    Args:
      rows: (B, ...). box: (low, high).
    """
    if transport == "float64":
        if not jax.config.read("jax_enable_x64"):
            raise InputError(
                "transport 'float64' needs 64-bit JAX: with jax.enable_x64(True), around the whole "
                "attack"
            )
        return rows.astype(jnp.float64)
    rows = rows.astype(jnp.float32)
    if transport == "float32":
        return rows
    low, high = box
    level = jnp.clip(jnp.round((rows - low) * (255 / (high - low))), 0, 255)
    return low + level * ((high - low) / 255)


def answered(
    values: Array, rows: Array, gives: Gives, defences: Sequence[Defence], reveal: Reveal
) -> Array:
    """From what a victim computes to what leaves the endpoint.

    Defences act on probabilities. Without any, logits go out untouched; with some, revealed logits
    are log p' of the defended probabilities (at least 1e-30), which are the victim's logits up to a
    number per row where p' = p. Where defended probabilities tie for the largest (rounding), the
    label revealed is the one of them that the victim prefers.

    Args:
      values: (B, K) logits or probabilities, or (B,) labels, as `gives` says. rows: (B, ...).

    Returns:
      Answers as of `Reveal`.
    """
    if gives == "label":
        return values.astype(jnp.int32)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if not defences:
        return reveal.of_logits(values) if gives == "logits" else reveal.of_probabilities(values)
    probabilities = jax.nn.softmax(values) if gives == "logits" else values
    for defence in defences:
        probabilities = defence(rows, probabilities)
    if reveal.kind == "label":
        largest = probabilities == probabilities.max(-1, keepdims=True)
        return reveal.of_probabilities(jnp.where(largest, values, -jnp.inf))
    if reveal.kind == "logits" and gives == "logits":
        return reveal.of_logits(jnp.log(jnp.maximum(probabilities, TINY)))
    return reveal.of_probabilities(probabilities)


def _check(gives: Gives, defences: Sequence[Any], reveal: Reveal, transport: str, box: Box) -> None:
    for defence in defences:
        if not isinstance(defence, Defence):
            raise InputError(
                f"defences must be Defence values, got {type(defence).__name__}; see "
                "oracle.defence(text)"
            )
    if gives not in ("logits", "probabilities", "label"):
        raise InputError(f"a victim gives logits, probabilities or label, not {gives!r}")
    if gives == "label" and (defences or reveal.kind != "label"):
        raise InputError(
            "a victim that gives labels alone can reveal nothing else and has no probabilities to "
            f"defend; got reveal {reveal.kind!r} and {len(defences)} defences"
        )
    if gives == "probabilities" and reveal.kind == "logits":
        raise InputError(
            "a victim that gives probabilities cannot reveal logits; reveal probabilities instead"
        )
    if transport not in ("float32", "float64", "uint8"):
        raise InputError(f"transport must be 'float32', 'float64' or 'uint8', not {transport!r}")
    if not box[0] < box[1]:
        raise InputError(f"box must be (low, high) with low < high, got {box}")


def _description(oracle: "Oracle | HostOracle", victim: str) -> dict[str, Any]:
    reveal = oracle.reveal
    shown = {"kind": reveal.kind, "decimals": reveal.decimals}
    if reveal.kind == "top_k":
        shown |= {"k": reveal.k, "renormalise": reveal.renormalise}
    return {
        **shown,
        "defences": [defence.describe() for defence in oracle.defences],
        "transport": oracle.transport,
        "victim": victim,
        "num_classes": oracle.num_classes,
        "input_shape": list(oracle.input_shape),
    }


@flax.struct.dataclass
class Oracle:
    """A victim that JAX can trace, behind its defences: rows (B, ...) -> answers, as a pytree.

    It stands in ``against(attack, oracle)``; the victim's parameters and the defences' numbers are
    arguments of the compiled program. Build it with `oracle_for`, which checks what this does not.

    Attributes:
      victim: callable pytree, rows -> (B, K): a `Classifier` or a `jax.tree_util.Partial`.
      defences: applied in this order.
      reveal: what leaves the endpoint.
      num_classes: K. input_shape: of a row: (H, W, C) of images, (D,) of feature vectors.
      gives: whether the victim returns logits or probabilities.
      transport: as in `transported`: ``uint8`` quantises the rows before anybody sees them. box:
        lowest and highest pixel value.
      precision: of the victim's products, as in `jax.default_matmul_precision`; finite differences
        need ``highest`` where the default is less than float32 (GPU, TPU). None leaves the default.
    """

    victim: Any
    defences: tuple[Defence, ...] = ()
    reveal: Reveal = flax.struct.field(pytree_node=False, default=Reveal())
    num_classes: int = flax.struct.field(pytree_node=False, default=10)
    input_shape: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(28, 28, 1))
    gives: Gives = flax.struct.field(pytree_node=False, default="logits")
    transport: Transport = flax.struct.field(pytree_node=False, default="float32")
    box: Box = flax.struct.field(pytree_node=False, default=(0.0, 1.0))
    precision: str | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def repeatable(self) -> bool:
        """Asking again costs nobody anything; see `Metered`."""
        return True

    def __call__(self, rows: Array) -> Array:
        """Rows (B, ...) -> (B, K), or (B,) labels.

        Raises:
          InputError: rows of another shape, or a victim of another number of classes.
        """
        rows = self.received(rows)
        return answered(self.values(rows), rows, self.gives, self.defences, self.reveal)

    def received(self, rows: Array) -> Array:
        """The rows as they arrive."""
        if rows.ndim != 1 + len(self.input_shape) or tuple(rows.shape[1:]) != tuple(
            self.input_shape
        ):
            raise InputError(
                f"rows must be (B, {', '.join(map(str, self.input_shape))}), got shape {rows.shape}"
            )
        return transported(rows, self.transport, self.box)

    def values(self, rows: Array) -> Array:
        """What the victim itself computes for received rows, (B, K)."""
        chunk = cache_chunk(len(rows))
        if self.precision is None:
            values = in_chunks(self.victim, rows, chunk)
        else:
            with jax.default_matmul_precision(self.precision):
                values = in_chunks(self.victim, rows, chunk)
        if values.shape != (rows.shape[0], self.num_classes):
            raise InputError(
                f"the victim answered {rows.shape[0]} rows with shape {values.shape}, "
                f"expected ({rows.shape[0]}, {self.num_classes})"
            )
        return values

    def describe(self) -> dict[str, Any]:
        """Kind, decimals, defences and what else a result must state."""
        return _description(self, type(getattr(self.victim, "module", self.victim)).__name__)


@jax.jit
def _defended(oracle: Oracle, values: Array, rows: Array) -> Array:
    return answered(values, rows, oracle.gives, oracle.defences, oracle.reveal)


@jax.jit
def _received(oracle: Oracle, rows: Array) -> Array:
    return oracle.received(rows)


class HostOracle:
    """The same for a victim on the host: NumPy rows -> NumPy answers.

    Transport, defences and reveal are the compiled code of `Oracle`, so equal victims give equal
    answers. With transport ``float64`` rows and answers are float64 throughout, whatever the
    precision of the rest of the program.

    Attributes:
      victim: a `HostVictim`. repeatable: the victim's. The others are as in `Oracle`.
    """

    on_host = True

    def __init__(
        self,
        victim: HostVictim,
        defences: Sequence[Defence] = (),
        reveal: Reveal | None = None,
        *,
        transport: Transport = "float32",
        box: Box = (0.0, 1.0),
    ):
        reveal = reveal or Reveal()
        _check(victim.gives, defences, reveal, transport, box)
        if victim.num_classes < 2 and (defences or reveal.kind != "logits"):
            raise InputError(
                f"{victim.name} gives one number a row, which reveal 'logits' shows and no defence "
                "acts on"
            )
        self.victim, self.defences, self.reveal, self.transport, self.box = (
            victim, tuple(defences), reveal, transport, box,
        )  # fmt: skip
        self.num_classes, self.input_shape, self.gives = (
            victim.num_classes,
            victim.input_shape,
            victim.gives,
        )
        self.repeatable = victim.repeatable
        self._shell = Oracle(
            Partial(_absent),
            self.defences,
            reveal,
            self.num_classes,
            self.input_shape,
            self.gives,
            transport,
            box,
        )
        self._expected = _expected(reveal, self.defences, self.num_classes)
        whole = reveal.kind == victim.gives and reveal.decimals is None
        self._untouched = (
            not self.defences and whole
        )  # what the victim computes is what is answered

    def __call__(self, rows: Any) -> np.ndarray:
        """Rows (B, ...) -> answers as of `Reveal`.

        Raises:
          InputError: rows of another shape or with NaN; a victim that answers another number of
            rows or classes, NaN, or what are no probabilities.
        """
        double = self.transport == "float64"
        rows = np.asarray(rows, np.float64 if double else np.float32)
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows)).reshape(len(rows), -1).any(1).sum())
            raise InputError(f"{bad} of {len(rows)} rows contain NaN or infinity")
        if rows.ndim != 1 + len(self.input_shape) or rows.shape[1:] != tuple(self.input_shape):
            self._shell.received(rows)  # says so
        with jax.enable_x64(double or jax.config.read("jax_enable_x64")):
            received = rows
            if self.transport == "uint8":
                received = np.asarray(_received(self._shell, _padded(rows)))[: len(rows)]
            values = victim_values(self.victim, received)
            if self._untouched:
                answers = values
            else:
                answers = np.asarray(_defended(self._shell, _padded(values), _padded(received)))[
                    : len(rows)
                ]
        check_answers(answers, len(rows), self.num_classes, self._expected)
        return answers

    def describe(self) -> dict[str, Any]:
        """As `Oracle.describe`."""
        return _description(self, self.victim.name)


def _padded(values: np.ndarray) -> np.ndarray:
    """(B, ...) with its last row repeated up to a power of two: attacks on the host ask batches of any size,
    and each size would be a program of its own."""
    size = 1 << max(len(values) - 1, 0).bit_length()
    return (
        values
        if size == len(values)
        else np.concatenate([values, np.repeat(values[-1:], size - len(values), 0)])
    )


def _absent(rows: Array) -> Array:
    raise NotImplementedError


def _expected(reveal: Reveal, defences: Sequence[Defence], num_classes: int) -> Reveal:
    """What answers must look like where a defence does not keep their sum at one."""
    if reveal.kind not in ("probabilities", "top_k") or all(
        defence.keeps_total for defence in defences
    ):
        return reveal
    coarse = [
        d
        for d in (reveal.decimals, *(getattr(x, "decimals", None) for x in defences))
        if d is not None
    ]
    return Reveal("top_k", k=reveal.k or num_classes, decimals=min(coarse, default=None))


def oracle_for(
    victim: Any,
    reveal: Reveal | None = None,
    defences: Sequence[Defence] = (),
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    gives: Gives | None = None,
    transport: Transport = "float32",
    box: Box | None = None,
    precision: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Oracle | HostOracle:
    """The oracle that suits a victim.

    A `Classifier`, a `Partial` or another callable pytree is traced; a `HostVictim`, a PyTorch
    module or a fitted scikit-learn estimator answers on the host. A bare function does not say
    where it runs: wrap it with ``victims.from_jax`` or ``victims.from_function``.

    Args:
      victim: see above.
      reveal: probabilities by default, or the label for a victim that gives nothing else.
      defences: in their order.
      input_shape: of a row: (H, W, C), (D,) or such; a `Classifier` and a `HostVictim` know their
        own.
      num_classes: K; found by asking for one row where it is not given.
      gives: of a traced victim or a PyTorch module, logits by default.
      mean, std: of a PyTorch module, which gets (x − mean)/std of rows in the box; one number, or
        one per channel.
      transport, box, precision: as in `Oracle`; the box of a `Classifier` is its own.

    Returns:
      An `Oracle`, or a `HostOracle`; ``against(attack, oracle)`` takes either.

    Raises:
      InputError: naming what is missing or does not fit.
    """
    if isinstance(victim, Classifier):
        input_shape, box = input_shape or victim.input_shape, box or victim.preprocessing.box
    box = box or (0.0, 1.0)
    normalisation = {
        name: given for name, given in (("mean", mean), ("std", std)) if given is not None
    }
    host = as_host_victim(victim, input_shape, num_classes, gives, **normalisation)
    if host is not None:
        if gives not in (None, host.gives):
            raise InputError(f"{host.name} gives {host.gives}, not {gives}")
        reveal = reveal or Reveal("label" if host.gives == "label" else "probabilities")
        return HostOracle(host, defences, reveal, transport=transport, box=box)
    if not callable(victim) or jax.tree_util.all_leaves([victim]):
        raise InputError(
            f"cannot tell whether {type(victim).__name__} runs inside JAX or on the host; wrap it "
            "with victims.from_jax(function, *parameters) or victims.from_function(predict, ...)"
        )
    reveal, gives = reveal or Reveal(), gives or "logits"
    _check(gives, defences, reveal, transport, box)
    if gives == "label":
        raise InputError("a traced victim gives logits or probabilities")
    if input_shape is None:
        raise InputError(
            "input_shape, (H, W, C), (D,) or such, is needed: this victim does not say what it "
            "takes"
        )
    shape = jax.eval_shape(victim, jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)).shape
    if len(shape) != 2 or shape[0] != 2 or (num_classes is not None and shape[1] != num_classes):
        raise InputError(
            f"asked 2 rows of {num_classes or 'any number of'} classes, the victim answers shape "
            f"{shape}"
        )
    return Oracle(
        victim,
        tuple(defences),
        reveal,
        shape[1],
        as_shape(input_shape),
        gives,
        transport,
        box,
        precision,
    )


def check_zeroth_order(oracle: Any, epsilon: float, dimension: int, box: Box | None = None) -> None:
    """Says whether finite differences with step ε can see anything through an oracle.

    A step of length ε in a random direction moves a pixel by about ε/√D, and an answer by about ‖∇‖
    times that. Both are compared with the smallest difference that survives: a grey level (high −
    low)/255 on the way in, a unit of the last decimal (or the noise's deviation) on the way out.

    Args:
      oracle: an oracle of any form (what has a `reveal`, and perhaps defences and a transport), or
        a reveal alone.
      epsilon: ε > 0, in the units of the box. dimension: D = H·W·C.
      box: lowest and highest pixel value; the oracle's own, or (0, 1).

    Raises:
      InputError: for labels, whose differences are zero.

    Warns:
      ZerothOrderWarning: with the numbers, when a step is smaller than what survives; and on an
        accelerator when the victim's products are not taken in full precision.

    Source: Truong et al., CVPR 2021, section 3.3, for ε and the directions; the thresholds are
    arithmetic.
    """
    if epsilon <= 0 or dimension < 1:
        raise InputError(
            f"epsilon must be positive and dimension at least 1, got {epsilon} and {dimension}"
        )
    oracle = getattr(oracle, "oracle", oracle)  # behind an explanation
    reveal = oracle if isinstance(oracle, Reveal) else oracle.reveal
    if reveal.kind == "label":
        raise InputError("finite differences of labels are zero; use an attack for hard labels")
    low, high = box or getattr(oracle, "box", (0.0, 1.0))
    step = epsilon / math.sqrt(dimension)
    moved = f"a step of {epsilon:g} moves a pixel by ε/√D = {step:.2g} (D = {dimension})"
    level = (high - low) / 255
    if getattr(oracle, "transport", None) == "uint8" and step < level:
        warnings.warn(
            f"{moved}, which uint8 rows lose: a grey level is {level:.2g}, {level / step:.3g} "
            "times as much",
            ZerothOrderWarning,
            stacklevel=2,
        )
    units = [("answers rounded to", 0.0 if reveal.decimals is None else 10.0**-reveal.decimals)]
    units += [
        (f"{defence.name} of", defence.resolution) for defence in getattr(oracle, "defences", ())
    ]
    for what, unit in units:
        if step < unit:
            warnings.warn(
                f"{moved}; {what} {unit:g} show a difference only where the answer's gradient is "
                f"longer than {unit / step:.3g}",
                ZerothOrderWarning,
                stacklevel=2,
            )
    if (
        isinstance(oracle, Oracle)
        and oracle.precision != "highest"
        and jax.default_backend() != "cpu"
    ):
        warnings.warn(
            f"{moved}, less than the rounding of TF32 or bfloat16 products; build the oracle with "
            "precision='highest'",
            ZerothOrderWarning,
            stacklevel=2,
        )


__all__ = [
    "HostOracle",
    "Oracle",
    "ZerothOrderWarning",
    "answered",
    "check_zeroth_order",
    "oracle_for",
    "transported",
]
