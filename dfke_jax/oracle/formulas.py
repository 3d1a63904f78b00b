"""What an attack costs by its published formula, and whether it kept to that."""

import inspect
from collections.abc import Callable

from dfke_jax.core.errors import InputError, LedgerError, UnknownNameError
from dfke_jax.oracle.ledger import Ledger


def _dfme(*, batch: int, generator_steps: int, directions: int, clone_steps: int) -> int:
    return batch * (generator_steps * (directions + 1) + clone_steps)


def _maze(
    *, batch: int, generator_steps: int, directions: int, clone_steps: int, reuse: bool = False
) -> int:
    return batch * (generator_steps * (directions + 1) + clone_steps - reuse)


def _megex(*, batch: int, generator_steps: int, clone_steps: int) -> int:
    return batch * (generator_steps + clone_steps)


def _clone_steps_only(*, batch: int, clone_steps: int) -> int:
    return batch * clone_steps


def _one_a_row(*, batch: int) -> int:
    return batch


def _jbda(*, seeds: int, rounds: int) -> int:
    return seeds * 2**rounds


def _equation_solving(*, features: int, extra: int = 0) -> int:
    return features + 1 + extra


def _retraining(*, features: int, classes: int, factor: int = 1) -> int:
    return factor * classes * (features + 1)


def _functional_equivalence(*, brackets: int, neurons: int, features: int) -> int:
    return 5 * brackets + 2 * (features + 1) * neurons + 4 * (neurons + features + 1)


_FORMULAS: dict[str, Callable[..., int]] = {
    "dfme": _dfme,
    "maze": _maze,
    "megex": _megex,
    "dfms": _clone_steps_only,
    "disguide": _clone_steps_only,
    "dual_students": _clone_steps_only,
    "knockoff": _one_a_row,
    "active_thief": _one_a_row,
    "copycat": _one_a_row,
    "dissector": _one_a_row,
    "jbda": _jbda,
    "equation_solving": _equation_solving,
    "retraining": _retraining,
    "functional_equivalence": _functional_equivalence,
}


def rows_per_step(name: str, **sizes: int) -> int:
    """Rows that one iteration of an attack asks, from its published form.

    | attack | rows | sizes |
    |---|---|---|
    | ``dfme`` | B (n_G (m + 1) + n_S) | batch, generator_steps, directions, clone_steps |
    | ``maze`` | the same; B less with `reuse` of the generator's batch | ..., reuse |
    | ``megex`` | B (n_G + n_S), n_G B explained | batch, generator_steps, clone_steps |
    | ``dfms``, ``disguide``, ``dual_students`` | B n_S | batch, clone_steps |
    | ``knockoff``, ``active_thief``, ``copycat``, ``dissector`` | q | batch |
    | ``jbda`` | N_0 2^ρ, in all | seeds, rounds |
    | ``equation_solving`` | D + 1, and those that check or average, in all | features, extra |
    | ``retraining`` | α K (D + 1), in all | features, classes, factor |
    | ``functional_equivalence`` | as below, in all | brackets, neurons, features |

    Functional equivalence asks 5 a bracket + 2 (D + 1) a neuron + 4 (h + D + 1).

    Raises:
      UnknownNameError: for another attack.
      InputError: for sizes that are missing, unknown or negative.

    Source: Truong et al., CVPR 2021, section 3 (DFME); Kariyappa et al., CVPR 2021 (MAZE); Miura et
    al., 2021 (MEGEX); Papernot et al., 2017 (JBDA); Tramèr et al., 2016, section 4 (equations);
    Jagielski et al., 2020 (ReLU networks).
    """
    if name not in _FORMULAS:
        raise UnknownNameError("attack", name, _FORMULAS)
    formula = _FORMULAS[name]
    known = inspect.signature(formula).parameters
    missing = [
        size for size, about in known.items() if about.default is about.empty and size not in sizes
    ]
    wrong = [size for size in sizes if size not in known]
    if missing or wrong:
        raise InputError(
            f"{name} costs a function of {', '.join(known)}; missing: "
            f"{', '.join(missing) or 'nothing'}, unknown: {', '.join(wrong) or 'nothing'}"
        )
    if any(size < 0 for size in sizes.values()):
        raise InputError(f"sizes must be at least 0, got {sizes}")
    return int(formula(**sizes))


def check_spent(ledger: Ledger, expected: int, *, at_most: bool = False) -> None:
    """Whether an attack asked what its formula says: call it after every step, or at the end.

    Rows sent must not exceed `expected`, and make it up together with those that the ledger
    answered. Of an attack whose questions depend on the answers the formula is a bound, which need
    not be reached (`at_most`).

    Raises:
      LedgerError: when they do not.
    """
    counts = ledger.counts()
    rows, hits = counts["rows"] or 0, counts["cache_hits"] or 0
    if rows > expected or not (at_most or expected <= rows + hits):
        raise LedgerError(
            f"the attack's formula says {'at most ' * at_most}{expected} rows, and it asked {rows}"
            + (f" and {hits} that the ledger had answers for" if hits else "")
        )


__all__ = ["check_spent", "rows_per_step"]
