"""ONNX graphs, run by onnxruntime on the host."""

from pathlib import Path
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import PREPARED, layout_of, prepared

_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def open(where: str, said: Declared) -> Found:
    """A graph of one input (B, C, H, W), (B, H, W, C) or (B, D) and one output (B, K), or the one
    that ``answer`` names.

    Raises:
      InputError: it cannot be read, or takes or answers more than one tensor of numbers.
    """
    import onnxruntime

    said.only(*PREPARED, "answer", kind="an ONNX graph")
    path = Path(where).expanduser()
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds
        raise InputError(f"{where} cannot be read as an ONNX graph: {error}") from error
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        raise InputError(
            f"{where} takes {[(i.name, i.type) for i in inputs]}, not one tensor of floats"
        )
    if said.answer is None and len(outputs) > 1:
        raise InputError(f"{where} answers {', '.join(outputs)}; declare which one by answer=NAME")
    if said.answer not in (None, *outputs):
        raise InputError(f"{where} answers {', '.join(outputs)}, and no {said.answer}")
    sizes, kind = inputs[0].shape, _TYPES[inputs[0].type]
    fixed = sizes[0] if sizes and isinstance(sizes[0], int) else None
    found, layout = _row(sizes[1:], said, path.name)
    shape = said.shape(found, path.name)
    ready = prepared(said, shape, layout)

    def ask(rows: np.ndarray) -> Any:
        given = np.ascontiguousarray(ready(rows, np), kind)
        if fixed and len(given) < fixed:  # the batch that it was exported for
            given = np.concatenate([given, np.repeat(given[-1:], fixed - len(given), 0)])
        answer: Any = session.run([said.answer or outputs[0]], {inputs[0].name: given})[0]
        return answer[: len(rows)]

    return Found("an ONNX graph", path.name, shape, ask=ask, batch_size=fixed or 256)


def _row(sizes: list[Any], said: Declared, name: str) -> tuple[tuple[int, ...] | None, str]:
    """The shape of a row as far as the graph says it, and the layout of images."""
    if not all(isinstance(size, int) for size in sizes):
        return None, "NCHW"
    if len(sizes) != 3:
        return tuple(sizes), "NCHW"
    layout, shape = layout_of(tuple(sizes), said, name)
    return shape, layout


__all__ = ["open"]
