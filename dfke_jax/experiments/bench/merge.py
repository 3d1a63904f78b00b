"""One result out of several, each of which holds some of a run's seeds."""

import dataclasses
from collections.abc import Iterable, Sequence

from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.arm import joined
from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.timing import CACHED


def merge(parts: Sequence[Result]) -> Result:
    """What the run would have left that takes all of these seeds one after another.

    Seeds are put in order. Seconds are added up, although seeds may have run side by side; the environment is the first part's.

    Raises:
      InputError: parts of different recipes or settings, a seed that is there twice or is missing, other arms.
    """
    if not parts:
        raise InputError("there is nothing to merge")
    parts = sorted(parts, key=lambda part: part.seeds)
    first = parts[0]
    for part in parts[1:]:
        if (part.recipe, part.config) != (first.recipe, first.config):
            raise InputError(f"seeds {part.seeds} are of another recipe or other settings than seeds {first.seeds}")
        if [arm.name for arm in part.arms] != [arm.name for arm in first.arms]:
            raise InputError(f"seeds {part.seeds} have other arms than seeds {first.seeds}")
    seeds = [seed for part in parts for seed in part.seeds]
    wanted = list(range(first.config["seed"], first.config["seed"] + first.config["seeds"]))
    if seeds != wanted:
        raise InputError(f"the run has seeds {wanted}, and these parts have {seeds}")
    seconds = _sums(part.seconds for part in parts)
    if any(CACHED not in part.seconds for part in parts):
        seconds.pop(CACHED, None)  # of some it is not known
    return dataclasses.replace(
        first,
        seeds=seeds,
        arms=[joined(arms) for arms in zip(*(part.arms for part in parts), strict=True)],
        seconds=seconds,
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        stages=_sums(part.stages for part in parts) if all(part.stages for part in parts) else {},
    )


def _sums(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found


__all__ = ["joined", "merge"]
