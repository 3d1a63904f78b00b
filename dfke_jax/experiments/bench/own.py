"""A model of the user's own in the place of the network that a recipe would train."""

import dataclasses
import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.data.csv_files import standard
from dfke_jax.experiments.bench.settings import Settings

if TYPE_CHECKING:
    from dfke_jax.data import Dataset
    from dfke_jax.models import OpenedModel


TABLE_BOX = (-1.0, 1.0)
"""Where the numbers of a table lie for a model that does not declare another box."""


@dataclasses.dataclass(frozen=True)
class OwnModel:
    """A teacher, or a victim, that was there before the run.

    Attributes:
      opened: the model. teacher: what a recipe takes: the network, or a `Victim` of one that only answers.
      mark: a hash of its files; of an address or a name, of the text.
    """

    opened: "OpenedModel"
    teacher: Any
    mark: str


class Victim:
    """A model that only answers, with what measuring needs.

    Attributes:
      opened: the model. free: whether asking it costs nobody anything, so that it can be asked beside the budget.
    """

    def __init__(self, opened: "OpenedModel"):
        self.opened = opened
        self.num_classes, self.input_shape = opened.num_classes, opened.input_shape
        self.free = bool(getattr(opened.victim, "repeatable", True)) and not hasattr(opened.victim, "request")

    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Scores (N, K): logits, of probabilities their logarithms, of labels one-hot rows."""
        box = self.opened.box
        rows = np.asarray(images)
        if rows.dtype == np.uint8:
            rows = box[0] + (box[1] - box[0]) * rows.astype(np.float32) / 255
        parts = [np.asarray(self.opened(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]
        answers = np.concatenate(parts)
        if self.opened.gives == "label":
            return np.eye(self.num_classes, dtype=np.float32)[answers]
        if self.opened.gives == "probabilities":
            return np.log(np.maximum(answers, np.finfo(np.float32).tiny))
        return answers


def open_own(config: Settings, dataset: "Dataset") -> OwnModel:
    """Opens the model that the settings name as the teacher.

    Raises:
      InputError: the recipe trains all of its networks itself, or needs the network of a model that only answers; the
        model does not fit the data; or as `dfke_jax.models.open_model`.
    """
    from dfke_jax.models import open_model
    from dfke_jax.models.declared import declared

    if config.own is None:
        raise InputError(
            f"this recipe trains all of its networks itself; {config.teacher} cannot be its teacher. Recipes of "
            "distillation take a network of one's own, recipes of one attack whatever answers"
        )
    said, table = declared(config.declare), dataset.schema is not None
    fits: dict[str, Any] = {"input_shape": dataset.shape, "num_classes": dataset.num_classes or None}
    if table:  # a model of tables takes vectors; one of ours, images of one pixel
        says = Path(config.teacher).is_dir() or config.teacher.startswith(("http://", "https://"))
        fits["input_shape"] = None if says else dataset.shape[2:]
        said = dataclasses.replace(said, box=said.box or (None if says else TABLE_BOX))
    said = dataclasses.replace(said, **{name: value for name, value in fits.items() if getattr(said, name) is None})
    opened = open_model(config.teacher, said)
    try:
        if table and opened.input_shape == dataset.shape[2:]:
            opened = of_vectors(opened, dataset)
        fits = {"input_shape": dataset.shape, "num_classes": dataset.num_classes or opened.num_classes}
        return OwnModel(opened, _checked(config, opened, fits), mark_of(config.teacher, config.declare))
    except BaseException:
        opened.close()
        raise


def of_vectors(opened: "OpenedModel", dataset: "Dataset") -> "OpenedModel":
    """A model of feature vectors (B, D) as one of a table's images (B, 1, 1, D) in [0, 1].

    It gets numbers in its own box, which is [−1, 1] unless it is declared, and categories as 0 or 1.
    """
    from dfke_jax.oracle import HostVictim

    assert dataset.schema is not None
    low, high = opened.box
    numbers = np.asarray(standard(dataset.schema)[1]) != 1  # a category's places are 0 or 1 on every scale

    def ask(images: np.ndarray) -> np.ndarray:
        rows = np.asarray(images).reshape(len(images), -1)
        return opened(np.where(numbers, low + (high - low) * rows, rows).astype(images.dtype))

    charges = not getattr(opened.victim, "repeatable", True) or hasattr(opened.victim, "request")
    gives, classes = opened.gives, opened.num_classes
    victim = HostVictim(ask, classes, dataset.shape, gives, opened.name, repeatable=not charges)
    return dataclasses.replace(opened, victim=victim, input_shape=dataset.shape, box=(0.0, 1.0), on_host=True)


def _checked(config: Settings, opened: "OpenedModel", fits: dict[str, Any]) -> Any:
    """What the recipe takes of an opened model that fits the data."""
    for name, value in fits.items():
        if tuple(np.atleast_1d(getattr(opened, name))) != tuple(np.atleast_1d(value)):
            raise InputError(f"{config.teacher} has {name} {getattr(opened, name)}, and the data set {value}")
    if config.own == "network":
        return opened.needed_classifier("distillation")
    return opened.classifier if opened.white_box and not opened.on_host else Victim(opened)


def mark_of(where: str, declare: Sequence[str] = ()) -> str:
    """A hash of all files that a name of a model stands for, or of the name where it is no file.

    Args:
      where: as `open_model` takes it. A folder stands for all its files, a TOML file for those that it names.
      declare: what is declared of it, ``NAME=VALUE``; files among the values (weights) count as well.
    """
    mark = hashlib.sha256(where.encode())
    path = Path(where.rpartition(":")[0] if ".py:" in where else where).expanduser()
    values = [text.partition("=")[2] for text in declare]
    named = [Path(value).expanduser() for value in values if value]
    if path.suffix == ".toml" and path.is_file():
        for text in _texts(path):
            named.append(path.parent / Path(text.rpartition(":")[0] if ".py:" in text else text).expanduser())
    for place in [path, *named]:
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.is_file():
                mark.update(file.read_bytes())
    return mark.hexdigest()[:16]


def _texts(path: Path) -> list[str]:
    """The strings of a TOML file, in order; none of one that cannot be read, which opening it says."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return []
    return [value for value in content.values() if isinstance(value, str)]


def answers_freely(teacher: Any) -> bool:
    """Whether a teacher may be asked beside a budget: all but endpoints that charge."""
    return getattr(teacher, "free", True)


__all__ = ["TABLE_BOX", "OwnModel", "Victim", "answers_freely", "mark_of", "of_vectors", "open_own"]
