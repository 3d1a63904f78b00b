"""Taking models away: safetensors, StableHLO, ONNX, and PyTorch."""

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dfke_jax.core.checkpoint import writable_directory
from dfke_jax.core.errors import CheckpointError, InputError, UnknownNameError
from dfke_jax.nn import saved
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.conv import convolution
from dfke_jax.nn.whitebox import WhiteBox

METADATA = "dfke_jax"
"""Where a safetensors file says what ``model.json`` would."""
_TORCH = ("LeNet5", "MLP", "ResNet", "TwoConv", "VGG", "WideResNet")


def free_files(to: str, path: Path) -> list[Path]:
    """The files that an export into a format writes.

    Raises:
      InputError: one of them is there already.
    """
    files = [path, path.with_suffix(".py")] if to == "torch" else [path]
    for file in files:
        if file.exists():
            raise InputError(f"{file} exists, and nothing is overwritten; choose another name")
    return files


def export(model: WhiteBox, to: str, path: str | Path) -> list[Path]:
    """Writes a model in another format; rows are pixels in its box, and answers are logits.

    ``safetensors``: the variables by name (``params/head/kernel``), with all that `Classifier.save`
    says beside them. ``stablehlo``: the function of any batch size, for CPU, CUDA and TPU
    (`jax.export`). ``onnx``: the same as a graph, rows NHWC. ``torch``: a ``state_dict``, and beside
    it a file of the network in PyTorch, whose ``net()`` takes NCHW and needs this package no more.

    Args:
      model: a `Classifier`; another white box to stablehlo and onnx only.
      to: the format. path: of the file.

    Returns:
      The files.

    Raises:
      UnknownNameError: another format. InputError: something is there already, what writes the
        format is not installed, or the network has no counterpart in it. CheckpointError: it cannot
        be written.
    """
    if to not in FORMATS:
        raise UnknownNameError("format", to, FORMATS)
    place = Path(path).expanduser()
    files = free_files(to, place)
    if to in ("safetensors", "torch") and not isinstance(model, Classifier):
        raise InputError(
            f"{to} takes networks of this package, and {model.name} is none; take stablehlo or onnx"
        )
    writable_directory(place.absolute().parent, needed_bytes=0)
    try:
        for file, content in zip(files, FORMATS[to](model, place), strict=True):
            partial = file.with_name(f".{file.name}.partial")
            partial.write_bytes(content)
            partial.replace(file)
    except OSError as error:
        raise CheckpointError(f"could not write {place}: {error.strerror or error}") from error
    return files


def _safetensors(classifier: Classifier, path: Path) -> list[bytes]:
    try:
        from safetensors.numpy import save
    except ImportError:
        raise InputError(
            'safetensors: `pip install -e ".[safetensors]"` in a clone of the repository'
        ) from None
    arrays = flatten_dict(saved.plain(classifier.variables), sep="/")
    about = saved.description(classifier.module, classifier.variables, classifier.facts())
    tensors = {str(name): np.ascontiguousarray(np.asarray(value)) for name, value in arrays.items()}
    return [save(tensors, metadata={METADATA: json.dumps(about)})]


def _stablehlo(model: WhiteBox, path: Path) -> list[bytes]:
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError('stablehlo: `pip install -e ".[models]"` in a clone of the repository')
    from jax import export as exporting

    (batch,) = exporting.symbolic_shape("b")
    rows = jax.ShapeDtypeStruct((batch, *model.input_shape), jnp.float32)
    try:
        with convolution("lax"):
            made = exporting.export(
                jax.jit(lambda rows: model(rows)), platforms=("cpu", "cuda", "tpu")
            )(rows)
    except Exception as error:  # shapes of a symbolic batch have errors of many kinds
        raise InputError(
            f"{model.name} cannot be exported for any batch size: {type(error).__name__}: {error}"
        ) from error
    return [bytes(made.serialize())]


def _onnx(model: WhiteBox, path: Path) -> list[bytes]:
    try:
        from jax2onnx import to_onnx
    except ImportError:
        raise InputError(
            "onnx needs jax2onnx, which asks for an older orbax-checkpoint than this package: `pip install jax2onnx`, "
            "then `pip install -e .` in a clone of the repository"
        ) from None
    loud = logging.getLogger("onnx_ir")
    level = loud.level
    loud.setLevel(logging.ERROR)  # of shapes that it does not write
    try:
        with convolution("lax"):
            made: Any = to_onnx(lambda rows: model(rows), [("B", *model.input_shape)])
    except Exception as error:
        raise InputError(
            f"jax2onnx cannot write {model.name}: {type(error).__name__}: {error}"
        ) from error
    finally:
        loud.setLevel(level)
    return [made.SerializeToString()]


def _torch(classifier: Classifier, path: Path) -> list[bytes]:
    import io

    try:
        import torch
    except ImportError:
        raise InputError(
            'torch: `pip install -e ".[torch]"` in a clone of the repository'
        ) from None
    kind, own = type(classifier.module).__name__, classifier.preprocessing
    if kind not in _TORCH or not type(classifier.module).__module__.startswith("dfke_jax.nn."):
        raise InputError(f"{kind} has no counterpart in PyTorch; those of {', '.join(_TORCH)} have")
    fields = saved.described(classifier.module)["fields"]
    shape = (*(own.size or classifier.input_shape[:2]), classifier.input_shape[2])
    arguments = ", ".join([repr(shape), *(f"{name}={value!r}" for name, value in fields.items())])
    given = (own.size, own.fit, own.mean, own.std, own.box[0])
    source = (Path(__file__).parent / "torch_networks.py").read_text(encoding="utf-8")
    source += (
        f'\n\ndef net() -> Classifier:\n    """The network of {path.name}, without its weights."""\n'
        f"    return Classifier({kind}({arguments}), {', '.join(map(repr, given))})\n"
    )
    state = {
        f"network.{name}": torch.tensor(value)
        for name, value in torch_state(classifier.variables).items()
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return [buffer.getvalue(), source.encode()]


def torch_state(variables: Any) -> dict[str, np.ndarray]:
    """Flax variables as PyTorch names and orders them: (H, W, I, O) -> (O, I, H, W), (I, O) -> (O, I)."""
    named = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    state: dict[str, np.ndarray] = {}
    for kind in ("params", "batch_stats"):
        for name, value in flatten_dict(saved.plain(variables.get(kind, {}))).items():
            array = np.asarray(value)
            if name[-1] == "kernel":
                array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
            state[".".join((*map(str, name[:-1]), named.get(str(name[-1]), str(name[-1]))))] = (
                np.ascontiguousarray(array)
            )
            if name[-1] == "mean":
                state[".".join((*map(str, name[:-1]), "num_batches_tracked"))] = np.asarray(0)
    return state


FORMATS: dict[str, Callable[[Any, Path], list[bytes]]] = {
    "safetensors": _safetensors,
    "stablehlo": _stablehlo,
    "onnx": _onnx,
    "torch": _torch,
}
"""Format -> what its files hold."""

__all__ = ["FORMATS", "METADATA", "export", "torch_state"]
