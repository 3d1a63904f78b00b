"""What methods cost, stated by the methods themselves."""

from typing import NamedTuple


class Cost(NamedTuple):
    """What one step of a method costs.

    Attributes:
      samples: images made. teacher_forward, teacher_backward: images that pass forward, and back,
        through the teacher.
      student_updates, generator_updates: updates of each.
    """

    samples: int = 0
    teacher_forward: int = 0
    teacher_backward: int = 0
    student_updates: int = 0
    generator_updates: int = 0

    def times(self, steps: int) -> dict[str, int]:
        """The budget of so many steps, for an arm's row."""
        return {
            "synthetic_samples": self.samples * steps,
            "teacher_rows": self.teacher_forward * steps,
            "teacher_gradients": self.teacher_backward * steps,
            "student_updates": self.student_updates * steps,
            "generator_updates": self.generator_updates * steps,
            "real_samples": 0,
        }


__all__ = ["Cost"]
