"""Reading directories of saved models, and holding them against what is declared."""

from pathlib import Path

import jax

from dfke_jax.core.checkpoint import restore
from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.models.declared import Declared, shown
from dfke_jax.nn import registry, saved
from dfke_jax.nn.classifier import Classifier, Preprocessing

_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
"""Files of a directory that `dfke_jax.core.save` wrote."""


def read(path: str, said: Declared) -> Classifier:
    """The classifier of a directory; see `dfke_jax.models.load`."""
    place = Path(path).expanduser()
    if (place / saved.FILE).is_file() or not any((place / name).exists() for name in _ORBAX):
        classifier = Classifier.load(place, module=said.module)
        check(classifier, said, path)
        return classifier
    missing = [
        name
        for name in ("network", "num_classes", "input_shape", "fit")
        if getattr(said, name) is None
    ]
    if missing:
        raise CheckpointError(
            f"{path} holds arrays alone, as older versions wrote them, and not what they are "
            f"arrays of; declare {', '.join(shown(name) + '=...' for name in missing)} (and size, "
            "mean, std and box as it was trained), or save it anew with classifier.save(path)"
        )
    assert said.network is not None
    assert said.num_classes is not None
    return restore(place, like(said.network, said.num_classes, said))


def like(network: str, num_classes: int, said: Declared) -> Classifier:
    """An untrained classifier of declared preprocessing; what is not declared is the registry's and
    the default.

    Raises:
      UnknownNameError, InputError: no such network, or one that cannot take the images.
    """
    shape = said.shape(None, "the network")
    if len(shape) != 3:
        raise InputError(f"a network of the registry takes images H,W,C, not rows of {shape}")
    size = said.size or registry.describe(network).input_size
    default = Preprocessing()
    preprocessing = Preprocessing(
        size=None if size == shape[:2] else size,  # type: ignore[arg-type]
        fit=said.fit or default.fit,
        mean=said.mean or default.mean,
        std=said.std or default.std,
        box=said.box or default.box,
    )
    module = registry.build(network, num_classes)
    return Classifier.create(
        module, jax.random.key(0), (shape[0], shape[1], shape[2]), preprocessing
    )


def check(classifier: Classifier, said: Declared, where: str) -> None:
    """Raises `InputError` where a classifier is not what is declared."""
    own = {
        "network": saved.network_name(classifier.module),
        "num_classes": classifier.sizes()[1],
        "input_shape": classifier.input_shape,
        "gives": said.gives,  # the probe says
        **{
            name: getattr(classifier.preprocessing, name)
            for name in ("size", "fit", "mean", "std", "box")
        },
    }
    for name, wanted in said.given().items():
        if name in own and own[name] != wanted:
            raise InputError(
                f"{where} has {shown(name)} {own[name]}, and {wanted} is declared; it says so "
                "itself, and needs no declaration"
            )


__all__ = ["check", "like", "read"]
