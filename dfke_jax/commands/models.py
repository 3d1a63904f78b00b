"""Models that commands are given by name: saved variables, or a small network that is trained at once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfke_jax.nn.classifier import Classifier


def load(model: str, name: str, num_classes: int, shape: tuple[int, int, int]) -> "Classifier":
    """A classifier by what a command line says of it.

    Args:
      model: ``digits``, or a directory that `dfke_jax.core.save` wrote of a `Classifier`. Such a directory holds
        variables only, so the rest must be said; preprocessing is what `experiments.settings.network` gives.
      name, num_classes, shape: of a saved network; `digits` takes the name alone.
    """
    from dfke_jax.core.checkpoint import restore
    from dfke_jax.experiments.bench.settings import network

    height, width, channels = shape
    if model == "digits":
        return trained_on_digits(name)
    return restore(model, network(name, num_classes, (height, width, channels)))


def trained_on_digits(name: str, steps: int = 600) -> "Classifier":
    """A network trained on the bundled digits; the same one every time."""
    import jax

    from dfke_jax import data
    from dfke_jax.core.loop import run
    from dfke_jax.distillation.response import cross_entropy_training
    from dfke_jax.experiments.bench.settings import network
    from dfke_jax.nn.training import trained

    digits = data.load("digits")
    images, labels = digits.train.on_device()
    classifier = network(name, digits.num_classes, digits.shape)
    return trained(
        classifier, run(cross_entropy_training(classifier, images, labels, steps=steps), jax.random.key(0), steps).state
    )


__all__ = ["load", "trained_on_digits"]
