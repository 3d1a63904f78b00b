"""How long a run took, the parts before an interruption and networks from the cache included."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dfke_jax.core.checkpoint import write_whole

CACHED = "cached"
"""In ``Result.seconds``: the part of ``total`` that other runs spent on networks that this one found in the cache. It is there only
where all of it is known; results without it state a lower bound."""
_FILE = "seconds.json"


class Account:
    """Seconds of one run, by kind of work and in all, over all processes that worked on it.

    They are written beside the run's checkpoints as it goes (`write`), and the next process begins with them. What a killed
    process did after its last `write` is not known and not counted.

    Args:
      directory: the run's.

    Attributes:
      seconds: by kind of work; written to by whoever works.
      stages: by stage of a seed (``seed0/dafl/duel``), without compiling; written to likewise.
    """

    def __init__(self, directory: str | os.PathLike):
        self._path = Path(directory) / _FILE
        stored = _read(self._path)
        self.seconds: dict[str, float] = {"compile": 0.0, **stored.get("seconds", {})}
        self.stages: dict[str, float] = stored.get("stages", {})
        self._before: float = stored.get("total", 0.0)
        self._networks: dict[str, float] = stored.get("networks", {})
        self._cached: float = stored.get(CACHED, 0.0)
        self._untimed: bool = stored.get("untimed", False)
        self._began = time.perf_counter()

    @property
    def total(self) -> float:
        """Wall-clock seconds of all processes, and what other runs spent on networks from the cache."""
        return self._before + time.perf_counter() - self._began + self._cached

    def write(self, stage: str = "", **running: float) -> None:
        """Writes the account down.

        Args:
          stage: that is not finished, whose seconds `running` are.
          running: seconds by kind of what is not finished, and so not in `seconds` yet.
        """
        seconds = {**self.seconds, **{kind: self.seconds.get(kind, 0.0) + value for kind, value in running.items()}}
        unfinished = {stage: self.stages.get(stage, 0.0) + sum(running.values())} if stage else {}
        content = {
            "seconds": seconds,
            "stages": {**self.stages, **unfinished},
            "total": self._before + time.perf_counter() - self._began,
            "networks": self._networks,
            CACHED: self._cached,
            "untimed": self._untimed,
        }
        write_whole(self._path, json.dumps(content))

    @contextlib.contextmanager
    def network(self, place: str | os.PathLike, *, had: bool, waited: float = 0.0) -> Iterator[Callable[[float], None]]:
        """While a network of the cache is trained, or found there; writes beside it how long its training took in all.

        What other runs spent on it is entered as ``anchors`` and as `CACHED` at the end of the block.

        Args:
          place: its directory in the cache.
          had: whether something of it is there already.
          waited: seconds for which this process waited while another one trained it; `total` has them too.

        Yields:
          To be called with the seconds that this process trained since the last call.
        """
        path, name = Path(place) / _FILE, Path(place).name
        if had and not path.exists():
            self._untimed = True  # from before times were kept

        def trained(seconds: float) -> None:
            write_whole(path, json.dumps({"seconds": _read(path).get("seconds", 0.0) + seconds}))
            self._networks[name] = self._networks.get(name, 0.0) + seconds

        yield trained
        whole = _read(path).get("seconds", 0.0)
        elsewhere = max(0.0, whole - self._networks.get(name, 0.0) - waited)
        self.seconds["anchors"] = self.seconds.get("anchors", 0.0) + elsewhere
        self._cached += elsewhere
        self._networks[name] = whole
        self.write()

    def closed(self) -> dict[str, float]:
        """The seconds of a finished run, for its result; they are written down as well."""
        self.write()
        cached = {} if self._untimed else {CACHED: self._cached}
        return {**self.seconds, **cached, "total": self.total}


def by_stage(stages: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage over all seeds, from those of every seed's: ``seed0/dafl/duel`` and its like -> ``dafl/duel``."""
    found: dict[str, float] = {}
    for name, seconds in stages.items():
        found[name.partition("/")[2]] = found.get(name.partition("/")[2], 0.0) + seconds
    return found


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


__all__ = ["CACHED", "Account", "by_stage"]
