"""Where metrics go: a file of JSON lines by default, TensorBoard or Weights & Biases on request."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dfke_jax.core.errors import InputError, UnknownNameError


class Tracker(Protocol):
    """Anything that takes metrics. `dfke_jax.core.run` calls it once per chunk."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Records the metrics after `step` steps."""

    def rewind(self, step: int) -> None:
        """Forgets everything after `step`, because the run resumes from there."""

    def close(self) -> None:
        """Writes what is pending."""


class JsonLines:
    """``{"step": ..., name: value, ...}``, one line per record, appended and flushed at once.

    Args:
      path: the file. `prefix`: put before every metric's name, so that stages can share one file.
    """

    def __init__(self, path: str | os.PathLike, prefix: str = ""):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.prefix = prefix

    def log(self, step: int, metrics: dict[str, float]) -> None:
        record = {"step": step, **{self.prefix + name: value for name, value in metrics.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, step: int) -> None:
        """Drops this prefix's records after `step`, and a last line that was cut off by a kill."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            mine = any(name != "step" and name.startswith(self.prefix) for name in record)
            if not mine or record["step"] <= step:
                kept.append(line)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(self.path)

    def close(self) -> None:
        pass


def read(path: str | os.PathLike) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of a metrics file: name -> (steps, values). Damaged lines are left out."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in Path(path).read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return curves


class TensorBoard:
    """Scalars for TensorBoard, through ``tensorboardX`` or ``torch`` with ``tensorboard``,
    whichever is installed.

    Args:
      directory: of its event files. prefix: put before every metric's name.

    Raises:
      InputError: neither is installed.
    """

    def __init__(self, directory: str | os.PathLike, prefix: str = ""):
        self.prefix = prefix
        self.writer = self.library()(str(directory))

    @staticmethod
    def library() -> Any:
        """The writer's class.

        Raises:
          InputError: there is none.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError("TensorBoard needs `pip install tensorboardX`") from None
        return SummaryWriter

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(self.prefix + name, value, step)

    def rewind(self, step: int) -> None:
        """Event files are append-only: TensorBoard shows the later record of a step."""

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Scalars for Weights & Biases.

    Args:
      prefix: put before every metric's name. settings: for ``wandb.init``.

    Raises:
      InputError: ``wandb`` is not installed, or did not begin: it may want ``wandb login``, or
        ``WANDB_MODE=offline``.
    """

    def __init__(self, prefix: str = "", **settings):
        wandb = self.library()
        self.prefix = prefix
        try:
            self.session = wandb.init(**settings)
        except Exception as error:  # of its own kinds, which differ from version to version
            raise InputError(f"Weights & Biases did not begin: {error}") from error

    @staticmethod
    def library() -> Any:
        """The module.

        Raises:
          InputError: there is none.
        """
        try:
            import wandb
        except ImportError:
            raise InputError("Weights & Biases needs `pip install wandb`") from None
        return wandb

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.session.log(
            {self.prefix + name: value for name, value in metrics.items()} | {"step": step}
        )

    def rewind(self, step: int) -> None:
        """A resumed run records its steps again; the ``step`` field tells them apart."""

    def close(self) -> None:
        self.session.finish()


class Prefixed:
    """Part of a tracker: every metric's name gets a prefix, so that stages can share one.

    Args:
      tracker: which is closed by whoever opened it. prefix: such as ``seed0/student/``.
    """

    def __init__(self, tracker: Tracker, prefix: str):
        self.tracker, self.prefix = tracker, prefix

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.tracker.log(step, {self.prefix + name: value for name, value in metrics.items()})

    def rewind(self, step: int) -> None:
        self.tracker.rewind(step)

    def close(self) -> None:
        pass


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""Trackers besides the file, by name."""


def check_trackers(names: Sequence[str]) -> None:
    """Makes sure, before any work, that what trackers need is installed.

    Raises:
      InputError: for a name that there is not, or whose library is missing.
    """
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
        TRACKERS[name].library()


def open_tracker(
    name: str, directory: str | os.PathLike, title: str, settings: dict[str, Any]
) -> Tracker:
    """A tracker of a run by name.

    Args:
      name: ``tensorboard``, whose event files go to ``tensorboard`` in the directory, or ``wandb``,
        a run of the project dfke_jax.
      directory: of the run. title: of the run. settings: of the run, JSON-able.

    Raises:
      InputError: see `check_trackers`, `WeightsAndBiases`.
    """
    check_trackers([name])
    if name == "tensorboard":
        return TensorBoard(Path(directory) / "tensorboard")
    return WeightsAndBiases(
        project="dfke_jax", name=title, dir=os.fspath(directory), config=settings
    )


__all__ = [
    "TRACKERS",
    "JsonLines",
    "Prefixed",
    "TensorBoard",
    "Tracker",
    "WeightsAndBiases",
    "check_trackers",
    "open_tracker",
    "read",
]
