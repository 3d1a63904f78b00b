"""Oracles that explain themselves: probabilities, and how each of them depends on the pixels."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array
from dfke_jax.oracle.defences import Defence
from dfke_jax.oracle.oracle import HostOracle, Oracle, answered, oracle_for
from dfke_jax.oracle.reveal import Reveal, check_answers
from dfke_jax.oracle.row_keys import row_keys
from dfke_jax.synthesis.zeroth_order import cache_chunk, in_chunks

TOGETHER = 10
"""Classes that are differentiated side by side; more take turns."""


class Explained(NamedTuple):
    """An answer with its explanation.

    Attributes:
      probabilities: (B, K), as revealed.
      explanation: (B, K, H, W, C), or (B, H, W, C) of the class that the victim finds most
        probable; of rows of another shape accordingly.
    """

    probabilities: Array
    explanation: Array


Gradients = Callable[[Array], Array]
"""Rows (B, H, W, C) -> ∂p_k/∂x, (B, K or 1, H, W, C)."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What is explained and how; hashable.

    Attributes:
      kind: a name of `EXPLANATIONS`.
      classes: ``all``, or the victim's ``top`` class alone.
      samples: of ``smooth_grad``. deviation: of its noise, in the units of the box.
      steps: of ``integrated_gradients``. baseline: the pixel value that its path begins with.
      decimals: maps are rounded to so many decimals; None for none.
      seed: of the noise of ``smooth_grad``, which is a function of it and of the row.

    Raises:
      UnknownNameError, InputError: for what means nothing.
    """

    kind: str = "gradient"
    classes: Literal["all", "top"] = "all"
    samples: int = 16
    deviation: float = 0.15
    steps: int = 32
    baseline: float = 0.0
    decimals: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.kind not in EXPLANATIONS:
            raise UnknownNameError("explanation", self.kind, EXPLANATIONS)
        if self.classes not in ("all", "top"):
            raise InputError(f"classes must be 'all' or 'top', not {self.classes!r}")
        if self.samples < 1 or self.steps < 1 or self.deviation < 0:
            raise InputError(
                "samples and steps must be at least 1 and deviation at least 0, got "
                f"{self.samples}, {self.steps} and {self.deviation}"
            )
        if self.decimals is not None and self.decimals < 0:
            raise InputError(f"decimals must be at least 0, got {self.decimals}")


def _gradient(gradients: Gradients, rows: Array, setting: Explanation) -> Array:
    return gradients(rows)


def _gradient_times_input(gradients: Gradients, rows: Array, setting: Explanation) -> Array:
    return gradients(rows) * rows[:, None]


def _sign(gradients: Gradients, rows: Array, setting: Explanation) -> Array:
    return jnp.sign(gradients(rows))


def _abs(gradients: Gradients, rows: Array, setting: Explanation) -> Array:
    return jnp.abs(gradients(rows))


def _smooth_grad(gradients: Gradients, rows: Array, setting: Explanation) -> Array:
    keys = row_keys(setting.seed, rows)

    def noisy(sample: Array) -> Array:
        draw = lambda key: jax.random.normal(
            jax.random.fold_in(key, sample), rows.shape[1:], rows.dtype
        )
        return gradients(rows + setting.deviation * jax.vmap(draw)(keys))

    return _mean(noisy, setting.samples)


def _integrated_gradients(gradients: Gradients, rows: Array, setting: Explanation) -> Array:
    way = rows - setting.baseline
    on_the_way = lambda step: gradients(setting.baseline + way * ((step + 0.5) / setting.steps))
    return way[:, None] * _mean(on_the_way, setting.steps)


def _mean(of: Callable[[Array], Array], count: int) -> Array:
    """The mean over 0 .. count − 1, one at a time."""
    add = lambda total, index: (total + of(index), None)
    start = of(jnp.zeros((), jnp.int32))
    total, _ = jax.lax.scan(add, start, jnp.arange(1, count, dtype=jnp.int32))
    return total / count


EXPLANATIONS: dict[str, Callable[[Gradients, Array, Explanation], Array]] = {
    "gradient": _gradient,
    "gradient_times_input": _gradient_times_input,
    "smooth_grad": _smooth_grad,
    "integrated_gradients": _integrated_gradients,
    "sign": _sign,
    "abs": _abs,
}
"""∂p/∂x; x·∂p/∂x; its mean over noise (Smilkov et al. 2017); (x − x₀)·its mean along the way from a
baseline x₀ (midpoints; Sundararajan et al. 2017); its sign; its size."""


@flax.struct.dataclass
class ExplanationOracle:
    """Answers with `Explained`: probabilities as revealed, and input gradients of the victim's own
    probabilities.

    Defences and rounding act on the probabilities alone: an endpoint that poisons its answers and
    explains honestly gives the explanation away, which is what this is for measuring. The
    explanation has defences of its own: the top class only, signs, rounded maps. With uint8
    transport, gradients are those at the quantised row.

    Attributes:
      oracle: a traced `Oracle` that reveals probabilities. setting: what is explained.

    Source: Miura et al., MEGEX, 2021, for the setting.
    """

    oracle: Oracle
    setting: Explanation = flax.struct.field(pytree_node=False, default=Explanation())

    @property
    def explanation(self) -> Explanation:
        """What its answers are explained by."""
        return self.setting

    @property
    def repeatable(self) -> bool:
        """Asking again costs nobody anything; see `Metered`."""
        return True

    @property
    def reveal(self) -> Reveal:
        return self.oracle.reveal

    @property
    def defences(self) -> tuple[Defence, ...]:
        return self.oracle.defences

    @property
    def num_classes(self) -> int:
        return self.oracle.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.oracle.input_shape

    def __call__(self, rows: Array) -> Explained:
        """(B, H, W, C) -> `Explained`."""
        oracle, setting = self.oracle, self.setting
        rows = oracle.received(rows)
        values = oracle.values(rows)
        top = jnp.argmax(values, -1) if setting.classes == "top" else None

        def gradients(at: Array) -> Array:
            if top is not None:
                return class_gradients(self._probabilities, at, top)
            # of rows that are evaluated; these are differentiated for all classes besides
            chunk = cache_chunk(len(at))
            return in_chunks(
                Partial(class_gradients, self._probabilities), at, chunk and chunk // 4
            )

        explained = EXPLANATIONS[setting.kind](gradients, rows, setting)
        if setting.decimals is not None:
            explained = jnp.round(explained, setting.decimals)
        answers = answered(values, rows, oracle.gives, oracle.defences, oracle.reveal)
        return Explained(answers, explained if top is None else explained[:, 0])

    def _probabilities(self, rows: Array) -> Array:
        values = self.oracle.values(rows).astype(jnp.float32)
        return jax.nn.softmax(values) if self.oracle.gives == "logits" else values

    def describe(self) -> dict[str, Any]:
        """As `Oracle.describe`, with the explanation."""
        return {**self.oracle.describe(), "explanation": dataclasses.asdict(self.setting)}


def class_gradients(
    probabilities: Callable[[Array], Array], rows: Array, top: Array | None = None
) -> Array:
    """∂p_k/∂x of every row: (B, K, H, W, C), or (B, 1, H, W, C) of the classes `top` (B,)."""
    answers, pull = jax.vjp(probabilities, rows)
    batch, classes = answers.shape
    if top is not None:
        return pull(jax.nn.one_hot(top, classes, dtype=answers.dtype))[0][:, None]

    def of_class(one_hot: Array) -> Array:
        return pull(jnp.broadcast_to(one_hot[None], (batch, classes)))[0]

    return jnp.moveaxis(
        jax.lax.map(of_class, jnp.eye(classes, dtype=answers.dtype), batch_size=TOGETHER), 0, 1
    )


def explanation_oracle(
    victim: Any,
    setting: Explanation | None = None,
    reveal: Reveal | None = None,
    defences: Any = (),
    **options: Any,
) -> ExplanationOracle:
    """The oracle that explains a victim's probabilities.

    Args:
      victim: an `Oracle`, or what `oracle_for` makes a traced one of.
      setting: input gradients of all classes by default.
      reveal, defences, **options: as in `oracle_for`; they belong to a bare victim.

    Raises:
      InputError: for labels or logits, and for a victim on the host, which cannot be
        differentiated.
    """
    if isinstance(victim, Oracle | HostOracle):
        if reveal is not None or defences or options:
            raise InputError(
                "reveal, defences and options belong to the oracle, which has its own already"
            )
        oracle = victim
    else:
        oracle = oracle_for(victim, reveal, defences, **options)
    if oracle.reveal.kind in ("label", "logits"):
        raise InputError(
            f"an oracle that reveals {oracle.reveal.kind!r} has no probabilities to explain; "
            "explanations go with 'probabilities' or 'top_k'"
        )
    if not isinstance(oracle, Oracle):
        raise InputError(
            "a victim on the host cannot be differentiated here; frameworks.traced_torch traces a "
            "PyTorch module"
        )
    return ExplanationOracle(oracle, setting or Explanation())


def check_explained(
    answers: Any,
    rows: int,
    num_classes: int,
    shape: tuple[int, ...],
    reveal: Reveal,
    setting: Explanation,
) -> None:
    """Checks explained answers that came back from a host or an endpoint, as `check_answers` does
    without explanation.

    Args:
      answers: a pair of NumPy arrays, probabilities and maps. rows: B that were asked. shape: of a
        row.

    Raises:
      InputError: for what is no such pair, a map for another number of classes or of another shape,
        NaN.
    """
    if not isinstance(answers, tuple) or len(answers) != 2:
        raise InputError(
            f"asked probabilities and their explanations, got {type(answers).__name__}"
        )
    probabilities, maps = (np.asarray(part) for part in answers)
    check_answers(probabilities, rows, num_classes, reveal)
    wanted = (rows, num_classes, *shape) if setting.classes == "all" else (rows, *shape)
    if maps.shape != wanted or maps.dtype.kind != "f":
        raise InputError(
            f"explanations of {setting.classes} classes must be numbers of shape {wanted}, got "
            f"{maps.dtype} {maps.shape}"
        )
    if not np.isfinite(maps).all():
        bad = int((~np.isfinite(maps)).reshape(rows, -1).any(1).sum())
        raise InputError(f"{bad} of {rows} explanations contain NaN or infinity")


def explained_gradients(answers: Explained, rows: Array, setting: Explanation) -> Array:
    """What an attacker reads out of explanations: (an estimate of) ∂p/∂x, of the explanation's
    shape.

    Gradient and SmoothGrad as they are; gradient × input and integrated gradients divided by the
    pixel (less the baseline), where it is not zero, and 0 elsewhere; a sign as it is, which knows
    nothing of the size.

    Raises:
      InputError: for ``abs``, whose sign is lost.
    """
    found = answers.explanation
    if setting.kind == "abs":
        raise InputError(
            "the sign of an absolute gradient is lost; such explanations give no gradient"
        )
    if setting.kind not in ("gradient_times_input", "integrated_gradients"):
        return found
    factor = rows if setting.kind == "gradient_times_input" else rows - setting.baseline
    factor = factor[:, None] if found.ndim == rows.ndim + 1 else factor
    return jnp.where(factor == 0, 0, found / jnp.where(factor == 0, 1, factor))


__all__ = ["EXPLANATIONS", "Explained", "Explanation", "ExplanationOracle", "check_explained",
           "class_gradients", "explained_gradients", "explanation_oracle"]  # fmt: skip
