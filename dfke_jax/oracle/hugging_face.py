"""Causal language models of the Hugging Face format, from a folder on this machine."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError, MissingDataError


def from_hugging_face(
    path: str | os.PathLike, *, precision: str = "float32", batch_size: int = 16
) -> tuple[Callable[[np.ndarray], np.ndarray], int, np.ndarray]:
    """The next token's logits of a causal model in a local folder; nothing is downloaded.

    Args:
      path: of the folder, as ``save_pretrained`` writes it (config.json and safetensors).
      precision: of its computation, ``float32`` or ``float64``.
      batch_size: prompts a call.

    Returns:
      (tokens (B, L) -> logits (B, V), V, the last layer's weights (V, h)).

    Raises:
      MissingDataError: for no such folder.
      InputError: without `pip install 'dfke-jax[huggingface]'`, or for a model of another kind.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise MissingDataError(
            f"{folder} holds no model: a folder with config.json and weights is needed"
        )
    if precision not in ("float32", "float64"):
        raise InputError(f"precision must be float32 or float64, not {precision!r}")
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        message = "models of Hugging Face need `pip install 'dfke-jax[huggingface]'`"
        raise InputError(message) from None
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise InputError(f"{folder} is no causal language model: {error}") from error
    model = model.to(getattr(torch, precision)).eval()

    def logits(tokens: np.ndarray) -> np.ndarray:
        parts = []
        with torch.no_grad():
            for start in range(0, len(tokens), batch_size):
                asked = torch.from_numpy(
                    np.ascontiguousarray(tokens[start : start + batch_size], np.int64)
                )
                parts.append(model(input_ids=asked).logits[:, -1].double().numpy())
        return np.concatenate(parts)

    head = model.get_output_embeddings().weight.detach().double().numpy()
    return logits, len(head), head


__all__ = ["from_hugging_face"]
