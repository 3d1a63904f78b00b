"""Settings of entangled watermarks, and the published ones."""

import dataclasses
from typing import Any, Literal

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.nn.soft_nearest import DISTANCES, FORMS

Distribution = Literal["in", "out"]


@dataclasses.dataclass(frozen=True)
class EntangledSettings:
    """How an entangled watermark is made. The defaults are the released ones for MNIST, in the
    paper's form.

    Attributes:
      source, target: c_S and c_T: triggers are made of class c_S, the marked network answers c_T.
      distribution: ``in``: c_S is a class of the task, and a patch of ones is set where the loss's
        gradient is largest; ``out``: c_S is a class of another data set, and there is no patch. The
        paper stresses the first, the released configurations for images use the second.
      layers: recorded layers (`dfke_jax.nn.layers.record`) that are entangled, as they are after a
        ReLU.
      entanglement: κ of each layer, against the cross-entropy *summed* over the batch; zeros give a
        plain backdoor.
      temperatures: τ_l at the beginning; in the released form τ̂_l, with τ = 100/τ̂.
      temperature_rate: of their descent; 0 keeps them. The paper's form descends in log τ, which
        stays positive.
      distance, form: see `dfke_jax.nn.soft_nearest_neighbour_loss`.
      position: ``largest``: the patch lies where the gradient's sum over it is largest, as in the
        paper; ``released``: where it is smallest, with row and column exchanged, as the released
        code does it.
      patch: side of the square.
      rounds, rate: rounds of the search for triggers, and the step of every pixel in it.
      threshold: a half batch of triggers is moved away from c_T until at most this share of it is
        answered so.
      suppressions: most steps of that kind per half batch; `last_suppressions` more follow at the
        end in any case.
      batch_size: of clean and of watermark batches (half triggers, half images of c_T); even.
      ratio: r, clean batches per watermark batch; at least 0.001, to three decimals. Of 1.2 every
        fifth has two.
      learning_rate, betas, epsilon: of Adam, whose epsilon is for losses summed over the batch too.
      decay_steps: watermark batches (with their clean ones) over which the learning rate falls to
        zero along a cosine; 0, as published, keeps it.
      watermark_statistics: of batch normalisation on watermark batches: ``running`` normalises as
        at inference and leaves the statistics alone; ``batch`` normalises by the mixed batch, which
        enters the running ones, as released.

    Source: Jia, Choquette-Choo, Chandrasekaran and Papernot, Entangled Watermarks as a Defense
    against Model Extraction, USENIX Security 2021; numbers from the authors' repository.
    """

    source: int = 1
    target: int = 7
    distribution: Distribution = "out"
    layers: tuple[str, ...] = ("conv1", "conv2", "dense1")
    entanglement: tuple[float, ...] = (32.0, 32.0, 32.0)
    temperatures: tuple[float, ...] = (100.0, 100.0, 100.0)
    temperature_rate: float = 0.1
    distance: Literal["euclidean", "cosine"] = "euclidean"
    form: Literal["paper", "released"] = "paper"
    position: Literal["largest", "released"] = "largest"
    patch: int = 3
    rounds: int = 10
    rate: float = 0.01
    threshold: float = 0.1
    suppressions: int = 50
    last_suppressions: int = 5
    batch_size: int = 512
    ratio: float = 1.0
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-5
    decay_steps: int = 0
    watermark_statistics: Literal["running", "batch"] = "running"

    def __post_init__(self):
        if not self.layers or not len(self.layers) == len(self.entanglement) == len(
            self.temperatures
        ):
            raise InputError(
                f"every layer needs a weight and a temperature, got {len(self.layers)} layers, "
                f"{len(self.entanglement)} weights and {len(self.temperatures)} temperatures"
            )
        if (
            self.source < 0
            or self.target < 0
            or (self.distribution == "in" and self.source == self.target)
        ):
            raise InputError(
                f"source and target must be two classes, got {self.source} and {self.target}"
            )
        if self.batch_size < 4 or self.batch_size % 2:
            raise InputError(f"batch_size must be even and at least 4, got {self.batch_size}")
        if not self.ratio >= 0.001:
            raise InputError(
                f"ratio must be at least 0.001 clean batches per watermark batch, got {self.ratio}"
            )
        for name in ("rate", "learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "temperature_rate",
            "rounds",
            "suppressions",
            "last_suppressions",
            "decay_steps",
        ):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        if not all(value > 0 for value in self.temperatures) or not all(
            value >= 0 for value in self.entanglement
        ):
            raise InputError(
                f"temperatures must be positive and weights not negative, got {self.temperatures}, "
                f"{self.entanglement}"
            )
        if not 0 <= self.threshold <= 1 or self.patch < 1:
            raise InputError(
                f"threshold must lie in [0, 1] and patch be positive, got {self.threshold}, "
                f"{self.patch}"
            )
        for what, value, known in (
            ("distance", self.distance, DISTANCES),
            ("form", self.form, FORMS),
            ("position", self.position, ("largest", "released")),
            ("distribution", self.distribution, ("in", "out")),
            ("watermark_statistics", self.watermark_statistics, ("running", "batch")),
        ):
            if value not in known:
                raise UnknownNameError(what, value, known)

    @property
    def half(self) -> int:
        """Triggers in a watermark batch."""
        return self.batch_size // 2

    def plain_backdoor(self) -> "EntangledSettings":
        """The same without entanglement: the control that isolates it."""
        return dataclasses.replace(self, entanglement=(0.0,) * len(self.layers))

    def ordinary_backdoor(self) -> "EntangledSettings":
        """Without entanglement, and triggers left as they are found: the baseline of the paper."""
        return dataclasses.replace(self.plain_backdoor(), rounds=0, last_suppressions=0)


def _released(**changes: Any) -> EntangledSettings:
    common = {
        "distance": "cosine",
        "form": "released",
        "position": "released",
        "watermark_statistics": "batch",
    }
    return EntangledSettings(**{**common, "temperatures": (1.0,) * 3, **changes})


def _in_the_papers_form(settings: EntangledSettings) -> EntangledSettings:
    """Euclidean, τ itself instead of 100/τ̂ (and its own rate of descent), the largest gradient,
    running statistics.
    """
    own = EntangledSettings()
    kept = {
        name: getattr(own, name)
        for name in ("distance", "form", "position", "watermark_statistics", "temperature_rate")
    }
    return dataclasses.replace(
        settings, **kept, temperatures=tuple(100 / value for value in settings.temperatures)
    )


_RESNET18 = {
    "layers": ("stage3", "stage4", "features"),
    "batch_size": 128,
    "source": 8,
    "target": 0,
}
_SEQUENCE = {
    "layers": ("state_middle", "state_last", "dense1"),
    "distribution": "in",
    "batch_size": 128,
}

ENTANGLED_RELEASED: dict[str, EntangledSettings] = {
    "mnist": _released(),
    "fashion_mnist": _released(source=8, target=0, batch_size=128, ratio=2.0),
    "fashion_mnist-resnet18": _released(
        **{**_RESNET18, "source": 9},
        ratio=1.2,
        entanglement=(1000.0,) * 3,
        temperatures=(0.01,) * 3,
    ),
    "speech_commands": _released(
        **_SEQUENCE,
        source=9,
        target=5,
        entanglement=(16.0,) * 3,
        temperatures=(30.0,) * 3,
        temperature_rate=2.0,
    ),
    "cifar10": _released(**_RESNET18, ratio=4.0, entanglement=(1e5,) * 3),
    "cifar100": _released(
        **_RESNET18, ratio=15.0, entanglement=(1e5,) * 3, temperature_rate=0.01, rounds=100
    ),
}
"""The released configurations, by data set (with ResNet-18, stage4 stands for its first block,
which is taken there).
"""

ENTANGLED_PRESETS: dict[str, EntangledSettings] = {
    name: _in_the_papers_form(settings) for name, settings in ENTANGLED_RELEASED.items()
}
"""The same numbers in the paper's form."""


__all__ = ["ENTANGLED_PRESETS", "ENTANGLED_RELEASED", "EntangledSettings"]
