"""Image classifiers of Hugging Face's transformers, in a folder on this machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import prepared
from dfke_jax.oracle.frameworks import torch_predict


def open(where: str, said: Declared) -> Found:
    """A folder of ``save_pretrained``. Nothing is downloaded, and no code in the folder is run.

    Normalisation is that of ``preprocessor_config.json`` if it is there, or what is declared;
    images must have the model's size, as its processor's resizing is not repeated.

    Raises:
      InputError: it is no image classifier, its weights are pickled, or another size is declared.
    """
    import torch
    import transformers

    said.only("mean", "std", kind="a Hugging Face model")
    folder = Path(where)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{where} has no weights in .safetensors; pickled ones are not read")
    try:
        model = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # of many kinds
        raise InputError(
            f"{where} is no image classifier that can be read: {type(error).__name__}: {error}"
        ) from error
    config, given = model.config, _processor(folder)
    shape = said.shape(_shape(config, given), folder.name)
    own_mean, own_std = _normalisation(given, folder.name)
    for name, value, found in (("mean", said.mean, own_mean), ("std", said.std, own_std)):
        if None not in (value, found) and not np.allclose(value, found):  # type: ignore[arg-type]
            raise InputError(
                f"{folder.name} is normalised with {name} {found}, and {value} is declared"
            )
    ready = prepared(Declared(mean=said.mean or own_mean, std=said.std or own_std), shape)

    class Logits(torch.nn.Module):
        """The model's logits alone."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            return self.model(images).logits

    names = getattr(config, "id2label", None) or {}
    classes = tuple(str(names[index]) for index in sorted(names)) or None
    ask = torch_predict(Logits(), shape, "NCHW", ready.mean, ready.std)
    notes = (
        ()
        if given
        else (
            "there is no preprocessor_config.json: rows are given as they are, unless mean and std "
            "are declared",
        )
    )
    return Found(
        "a Hugging Face image classifier",
        folder.name,
        shape,
        ask=ask,
        num_classes=int(config.num_labels),
        gives="logits",
        classes=classes,
        batch_size=64,
        notes=notes,
    )


def _shape(config: Any, given: dict[str, Any]) -> tuple[int, int, int] | None:
    """(H, W, C) of the model's images, where it says so; sizes are numbers in older folders."""
    size = given.get("size") or {}
    size = size if isinstance(size, dict) else {"height": size}
    height = size.get("height") or size.get("shortest_edge")
    side = getattr(config, "image_size", None) or (height and (height, size.get("width", height)))
    if side is None:
        return None
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return int(height), int(width), int(getattr(config, "num_channels", 3))


def _normalisation(given: dict[str, Any], name: str) -> tuple[tuple | None, tuple | None]:
    """Mean and deviation by channel, None for none.

    Raises:
      InputError: images are normalised, and it is not said by what.
    """
    if not given.get("do_normalize", False):
        return None, None
    if not (given.get("image_mean") and given.get("image_std")):
        raise InputError(
            f"preprocessor_config.json of {name} normalises images and does not say by which "
            "image_mean and image_std; write them into it"
        )
    return tuple(given["image_mean"]), tuple(given["image_std"])


def _processor(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


__all__ = ["open"]
