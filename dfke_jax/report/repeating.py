"""The command that runs a result's experiment again."""

import dataclasses
import shlex
from typing import Any

from dfke_jax.core.errors import DfkeError
from dfke_jax.experiments.bench.registry import recipe
from dfke_jax.experiments.bench.result import Result

_WHOLE = "config.json"


def command(result: Result) -> str:
    """``dfke run RECIPE`` with the options that differ from the defaults of its data set.

    Where a setting has no option of its own (a dictionary, a choice between several kinds of settings), or the
    recipe is not known here, ``--config config.json``, which every run leaves beside its page.
    """
    whole = shlex.join(["dfke", "run", result.recipe, "--config", _WHOLE])
    try:
        usual = recipe(result.recipe).settings(result.dataset)
        options = _options(usual, result.config, "")
    except (DfkeError, KeyError, TypeError, ValueError):
        return whole
    if options is None:
        return whole
    dataset = [] if result.dataset == recipe(result.recipe).config.dataset else ["--dataset", result.dataset]
    return shlex.join(["dfke", "run", result.recipe, *dataset, *options])


def _options(usual: Any, config: dict[str, Any], within: str) -> list[str] | None:
    """What differs of a record of settings, as options; None where one of them has none."""
    fields = {field.name: field for field in dataclasses.fields(usual)}
    found: list[str] = []
    for name, value in config.items():
        if not fields[name].init or (name == "dataset" and not within):
            continue
        old = getattr(usual, name)
        option = f"{within}{name.replace('_', '-')}"
        if dataclasses.is_dataclass(old) and isinstance(value, dict) and value.keys() == _names(old):
            more = _options(old, value, f"{option}.")
        else:
            more = [] if _same(old, value) else _one(option, old, value)
        if more is None:
            return None
        found += more
    return found


def _names(record: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def _same(old: Any, value: Any) -> bool:
    """Whether JSON says what a setting is."""
    if isinstance(old, list | tuple) and isinstance(value, list):
        return len(old) == len(value) and all(map(_same, old, value))
    return type(old) is type(value) and old == value


def _one(option: str, old: Any, value: Any) -> list[str] | None:
    """An option with its value; None for what the command line does not take so."""
    if isinstance(value, bool):
        before, _, last = option.rpartition(".")
        return [f"--{option}" if value else f"--{before and before + '.'}no-{last}"]
    if isinstance(value, list):
        if any(isinstance(item, list | dict | bool) or item is None for item in value):
            return None
        return [f"--{option}", *map(_text, value)]
    if isinstance(value, dict) or dataclasses.is_dataclass(old):
        return None
    return [f"--{option}", _text(value)]


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


__all__ = ["command"]
