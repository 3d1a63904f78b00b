"""What arms use, counted from a configuration: rows of the teacher's answers or gradients, and real samples."""

from collections.abc import Sequence
from typing import Any

from dfke_jax.experiments.bench.settings import augmentation


def distillation_rows(config: Any, images: int, augment: str) -> int:
    """Rows that the teacher answers while a student learns from a transfer set.

    The teacher answers every augmented batch, B rows in each of T steps; without augmentation its answers are a table, every image
    asked once.

    Args:
      config: has ``distillation_steps`` T and ``distillation_batch`` B.
      images: of the transfer set.
      augment: name of the augmentation, as in `dfke_jax.experiments.bench.settings.augmentation`.
    """
    if augmentation(augment) is None:
        return images
    return config.distillation_steps * config.distillation_batch


def opponent_rows(config: Any, student_batch: int = 64) -> int:
    """Rows that the teacher answers to the opponent of adaptive DeepInversion, which learns after every batch of images.

    Args:
      config: has ``samples``, ``synthesis_batch`` and ``student_steps``.
      student_batch: rows of one of those steps, as `dfke_jax.distillation.adaptive_deep_inversion` has by default.
    """
    return config.samples // config.synthesis_batch * config.student_steps * student_batch


def recorded_rows(class_counts: Sequence[int], per_class: int) -> int:
    """Real images that activation records are made from: of every class at most `per_class`.

    >>> recorded_rows([5, 2], 3)
    5
    """
    return sum(min(int(count), per_class) for count in class_counts)


def distilled(
    config: Any,
    synthetic: int = 0,
    synthesis_steps: int = 0,
    real: int = 0,
    *,
    augment: str = "",
    recorded: int = 0,
    other_rows: int = 0,
) -> dict[str, int]:
    """The budget of an arm that ends in distillation: see `dfke_jax.experiments.bench.result.Arm`.

    Args:
      config: the recipe's.
      synthetic: images of the transfer set that are not real (of this data set).
      synthesis_steps: updates of each.
      real: real images of the transfer set, where it has no others.
      augment: name of the distillation's augmentation; the configuration's for such a set by default.
      recorded: real images that the teacher saw beforehand, for statistics.
      other_rows: further rows that the teacher answered.
    """
    augment = augment or (config.real_augmentation if real else config.augmentation)
    answered = distillation_rows(config, synthetic or real, augment)
    return {
        "synthetic_samples": synthetic,
        "synthesis_steps": synthesis_steps,
        "teacher_rows": answered + synthetic * synthesis_steps + recorded + other_rows,
        "distillation_steps": config.distillation_steps,
        "real_samples": real + recorded,
    }


def summed(*parts: dict[str, int]) -> dict[str, int]:
    """The budget of an arm that is made in several parts.

    >>> summed({"teacher_rows": 5}, {"teacher_rows": 2, "student_updates": 3})
    {'teacher_rows': 7, 'student_updates': 3}
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


_WITHOUT_IMAGES = ("magnitude_pruning", "quantisation", "half_precision", "input_filter", "noise_averaging")
_ASKING = ("soft_retraining", "hard_retraining")


def removal(attack: str, held: int, steps: int) -> dict[str, int]:
    """The budget of a removal attack: nothing of the attacker's images where it does not look at them; rows that the marked
    network answered where the attack learns from its answers (without augmentation, every image once).

    Args:
      attack: name, as in `dfke_jax.watermarking.removal.REMOVALS`.
      held: images that the attacker holds.
      steps: of its training.
    """
    budget = {"real_samples": 0 if attack in _WITHOUT_IMAGES else held, "training_steps": steps}
    return {**budget, "victim_rows": held} if attack in _ASKING else budget


__all__ = ["distillation_rows", "distilled", "opponent_rows", "recorded_rows", "removal", "summed"]
