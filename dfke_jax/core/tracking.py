"""Where metrics go: a file of JSON lines by default, TensorBoard or Weights & Biases on request."""

import json
import math
import os
from pathlib import Path
from typing import Protocol

from dfke_jax.core.errors import InputError


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
    """Scalars for TensorBoard, through ``tensorboardX`` or ``torch``, whichever is installed."""

    def __init__(self, directory: str | os.PathLike, prefix: str = ""):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError("TensorBoard needs `pip install tensorboardX`") from None
        self.prefix = prefix
        self.writer = SummaryWriter(str(directory))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(self.prefix + name, value, step)

    def rewind(self, step: int) -> None:
        """Event files are append-only: TensorBoard shows the later record of a step."""

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Scalars for Weights & Biases; ``settings`` go to ``wandb.init``."""

    def __init__(self, prefix: str = "", **settings):
        try:
            import wandb
        except ImportError:
            raise InputError("Weights & Biases needs `pip install wandb`") from None
        self.prefix = prefix
        self.session = wandb.init(**settings)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.session.log(
            {self.prefix + name: value for name, value in metrics.items()} | {"step": step}
        )

    def rewind(self, step: int) -> None:
        """A resumed run records its steps again; the ``step`` field tells them apart."""

    def close(self) -> None:
        self.session.finish()


__all__ = ["JsonLines", "TensorBoard", "Tracker", "WeightsAndBiases", "read"]
