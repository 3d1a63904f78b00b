"""PyTorch modules in memory, and their weights from files."""

from pathlib import Path
from typing import Any

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared, existing
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import PREPARED, image_shape, prepared, preprocessing
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.oracle.frameworks import torch_predict


def open(where: Any, said: Declared) -> Found:
    """A ``torch.nn.Module``, with the declared weights; put in eval mode."""
    said.only(*PREPARED, "weights", kind="a PyTorch module")
    name = type(where).__name__
    if said.weights is not None:
        load_weights(where, said.weights)
    shape = said.shape(getattr(where, "input_shape", None), name)
    ready = prepared(said, shape)
    ask = torch_predict(where, shape, ready.layout, ready.mean, ready.std)

    def adapt(gives: Any) -> WhiteBox:
        from dfke_jax.nn.adapters import from_torch

        layout: Any = ready.layout
        return from_torch(
            where,
            image_shape(shape, name),
            layout=layout,
            preprocessing=preprocessing(said),
            gives=gives,
        )

    return Found("a PyTorch module", name, shape, ask=ask, batch_size=256, adapt=adapt)


def load_weights(module: Any, path: str) -> None:
    """Puts a ``state_dict`` (.pt, .pth; read without running code) or a safetensors file into a
    module.

    A dictionary that holds the ``state_dict`` under that name is unwrapped.

    Raises:
      InputError: it cannot be read, or is not this module's.
    """
    import torch

    file = existing(path, "give the file of weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError:
        raise InputError(
            f'{path} needs safetensors: `pip install -e ".[safetensors]"` in a clone of the repository'
        ) from None
    except Exception as error:
        raise InputError(f"{path} cannot be read as weights alone: {_first(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, and no state_dict")
    try:
        module.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f"the weights of {Path(path).name} are not those of {type(module).__name__}: {error}"
        ) from error


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


__all__ = ["load_weights", "open"]
