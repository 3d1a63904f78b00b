"""Distils a student from a teacher's weights, without a single real image, and holds it against its
control.

python examples/distil_without_data.py
"""

import jax

from dfke_jax import core, data, distillation, nn


def main(
    teacher_steps: int = 500,
    samples: int = 1000,
    synthesis_steps: int = 100,
    student_steps: int = 2000,
) -> dict[str, float]:
    """Accuracies in per cent of the teacher, the student, and the student of the start images."""
    # A teacher. From the next paragraph on its training data are gone: only its weights are used.
    digits = data.load("digits")
    images, labels = digits.train.on_device()
    empty = nn.Classifier.create(nn.build("mlp_small"), jax.random.key(0), digits.shape)
    training = distillation.cross_entropy_training(empty, images, labels, steps=teacher_steps)
    teacher = nn.trained(empty, core.run(training, jax.random.key(1), teacher_steps).state)

    # Images on which the teacher gives answers drawn around its similar classes, out of smooth
    # noise of any level.
    settings = distillation.ImpressionSettings(
        steps=synthesis_steps,
        start="smooth",
        start_mean=(0, 1),
        start_sd=(0, 1),
        total_variation=(1e-3, 1e-1),
    )

    def student_of(control: bool) -> nn.Classifier:
        synthesis = distillation.data_impressions(
            teacher, settings, samples, samples, control=control
        )
        pool = core.run(synthesis, jax.random.key(2), 1).state
        method = distillation.knowledge_distillation(
            empty, teacher, pool.images, steps=student_steps
        )
        return nn.trained(empty, core.run(method, jax.random.key(3), student_steps).state)

    # The control is the same pipeline, keys and budget without the optimisation: look at it first.
    networks = {"teacher": teacher, "student": student_of(False), "control": student_of(True)}
    found = {}
    for name, network in networks.items():
        right = network.predict(digits.test.images).argmax(1) == digits.test.labels
        found[name] = 100 * float(right.mean())
        print(f"{name}: {found[name]:.1f} %")
    return found


if __name__ == "__main__":
    main()
