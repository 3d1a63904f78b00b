"""Marks a network, commits to the mark, and verifies it on a copy and on a network that copied
nothing.

python examples/mark_and_verify.py
"""

import tempfile
from pathlib import Path

import jax
from jax.tree_util import Partial

from dfke_jax import core, data, distillation, nn, watermarking
from dfke_jax.nn.losses import cross_entropy


def main(
    steps: int = 600,
    triggers: int = 60,
    independents: int = 100,
    alpha: float = 0.01,
    near: float = 0.05,
    folder: str | None = None,
) -> dict[str, watermarking.Verdict]:
    """The verdicts on the marked network, a fine-tuned copy of it and an innocent network."""
    digits = data.load("digits")
    images, labels = digits.train.on_device()
    empty = nn.Classifier.create(nn.build("mlp_small"), jax.random.key(0), digits.shape)

    # Two keys: the secret one holds images that show nothing, with labels drawn at random; the
    # public one holds commitments to them. Publish its fingerprint before the network is given
    # away.
    secret, public = watermarking.keygen(
        10, shape=digits.shape, count=triggers, kind="noise", key=jax.random.key(1)
    )
    directory = Path(folder or tempfile.mkdtemp())
    secret.save(directory / "secret.json")
    public.save(directory / "public.json")
    print("publish:", public.fingerprint)

    # The network learns its task and, beside it, the triggers.
    settings = watermarking.MarkingSettings(
        steps=steps, triggers_per_batch=10, learning_rate=0.05, decay_every=max(1, 2 * steps // 3)
    )
    marking = watermarking.mark(empty, images, labels, secret, settings)
    marked = nn.trained(empty, core.run(marking, jax.random.key(2), steps).state)

    # A thief fine-tunes a copy on the task; others have trained networks of their own.
    tuning = nn.training(
        marked,
        images,
        labels,
        loss=Partial(cross_entropy),
        optimizer=nn.optimiser("adam", 1e-4),
        batch_size=64,
        fine_tune=True,
    )
    copy = nn.trained(marked, core.run(tuning, jax.random.key(3), max(1, steps // 3)).state)
    null = watermarking.null_population(
        empty, images, labels, jax.random.key(4), models=independents, steps=max(1, steps // 2)
    )
    training = distillation.cross_entropy_training(empty, images, labels, steps=steps)
    innocent = nn.trained(empty, core.run(training, jax.random.key(5), steps).state)

    # Verification opens the commitments, asks the triggers and counts. The networks of others keep
    # an owner from choosing labels that any network gives; they must be about as good at the task
    # as the suspect.
    task = (digits.test.images, digits.test.labels)
    found = {}
    for name, suspect in (("marked", marked), ("fine-tuned copy", copy), ("innocent", innocent)):
        found[name] = watermarking.verify(
            secret, public, suspect, alpha=alpha, null=null, task=task, near=near
        )
        print(f"\n{name}\n{found[name]}")
    return found


if __name__ == "__main__":
    main()
