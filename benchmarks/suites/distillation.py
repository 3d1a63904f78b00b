"""A student learns a teacher's answers from a pool of images."""

import functools
from typing import Any

import jax

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import classifier, random_images
from dfke_jax.data.augment import affine, compose, gaussian_noise
from dfke_jax.distillation import knowledge_distillation

TEMPERATURE = 20.0
RATE = 3e-3
SCHEDULE = 2000
AUGMENTATION = {"rotation_radians": 0.35, "scale": (0.8, 1.2), "shift_pixels": 3.0, "max_sigma": 0.3}


def row(
    augmented: bool, pool: int, batch: int, length: int, plain_length: int, peer_steps: int, blocks: int = 11
) -> Row:
    """Distillation of LeNet-5 to its half; with augmentation the teacher answers every batch, without it a table does."""
    teacher, student = classifier("lenet5"), classifier("lenet5_half", 7)
    images = random_images(pool)
    strengths = dict(AUGMENTATION)
    sigma = strengths.pop("max_sigma")
    made = knowledge_distillation(
        student,
        teacher,
        images,
        temperature=TEMPERATURE,
        steps=SCHEDULE,
        batch_size=batch,
        learning_rate=RATE,
        augment=compose(affine(**strengths), gaussian_noise(sigma)) if augmented else None,  # type: ignore[arg-type]
    )
    key = jax.random.key(8)

    def peer() -> Any:
        from benchmarks import peers

        return peers.Distillation(
            peers.LeNet5((3, 8)),
            peers.lenet5_from(teacher.variables),
            images,
            temperature=TEMPERATURE,
            rate=RATE,
            schedule=SCHEDULE,
            batch=batch,
            steps=peer_steps,
            augmentation=AUGMENTATION if augmented else None,
        )

    contenders = {
        "ours": Program(made, key, units=1, length=length),
        "lax_scan": Program(made, key, units=1, length=plain_length, convolution="lax"),
        "pytorch": Peer(peer, units=peer_steps),
    }
    params = {"teacher": "lenet5", "student": "lenet5_half", "pool": pool, "batch": batch}
    params |= {"temperature": TEMPERATURE, "augmentation": AUGMENTATION if augmented else None}
    return Row("steps/s", params, contenders, also={"samples/s": batch}, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    sizes, blocks = ((64, 8, 4, 2, 2), 7) if suite == "smoke" else ((3000, 64, 50, 10, 20), 11)
    return {
        "distillation/lenet5_half/augmented": functools.partial(row, True, *sizes, blocks),
        "distillation/lenet5_half/table": functools.partial(row, False, *sizes, blocks),
    }
