"""The anchors: what real data gives."""

import dataclasses

from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, AnchoredSettings
from dfke_jax.experiments.bench.workbench import Workbench

DAFL_STUDENT = "their student has 15,738 parameters, lenet5_half 35,820"

REAL_DATA = (
    Published("real_data", "mnist", 98.91, "Chen et al., ICCV 2019 (DAFL), Table 1", "readme", differs=DAFL_STUDENT),
    Published("real_data", "mnist", 99.25, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
    Published("real_data", "fashion_mnist", 89.66, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
)


@dataclasses.dataclass(frozen=True)
class AnchorSettings(AnchoredSettings):
    """Settings of the anchors."""


def execute(config: AnchorSettings, bench: Workbench) -> list[Arm]:
    """Teacher, student from scratch, student distilled with real data."""
    arms = bench.anchors(scratch=True)
    bench.similarity()
    return arms


register(
    Recipe(
        name="anchors",
        title="Anchors: training and distilling with real data",
        summary="Trains the teacher and the student by cross-entropy, and distils the student on the real training images: "
        "the figures that every data-free method is measured against.",
        paper="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015",
        config=AnchorSettings,
        execute=execute,
        published=(
            Published("teacher", "mnist", 99.34, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
            Published("scratch", "mnist", 98.92, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
            Published("teacher", "fashion_mnist", 90.84, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
            Published("scratch", "fashion_mnist", 89.43, "Nayak et al., ICML 2019 (ZSKD)", "recalled"),
            *REAL_DATA,
        ),
        time="5 min on 2 CPU cores (mnist, 3 seeds)",
        presets={"digits": DISTILLED_DIGITS},
    )
)

__all__ = ["DAFL_STUDENT", "REAL_DATA", "AnchorSettings"]
