"""PyTorch models as white boxes: the exported program of one, evaluated in JAX."""

import copy
import dataclasses
import logging
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, PyTree
from dfke_jax.nn.adapters.adapted import (
    TOLERANCE,
    AdaptedClassifier,
    Dense,
    Normalised,
    Traced,
    adapted,
)
from dfke_jax.nn.adapters.aten import CHECKS, OPERATIONS
from dfke_jax.nn.classifier import Preprocessing

_NORM = "_native_batch_norm_legit_no_training"
_LAYERS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "linear",
    "addmm",
    "layer_norm",
    "group_norm",
)


def from_torch(
    model: Any,
    input_shape: tuple[int, int, int],
    *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    preprocessing: Preprocessing | None = None,
    gives: Literal["logits", "probabilities"] = "logits",
    layers: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> AdaptedClassifier:
    """A PyTorch module, or an exported program (a ``.pt2`` file's), as a white box in evaluation
    mode.

    `torch.export` gives the model's operations as a graph, which is evaluated in JAX: no Python of
    the model runs after that. Layers are its convolutions, dense layers and normalisations, under
    their names in the module (``layer1.0.conv2``), maps as (B, H, W, C).

    Args:
      model: a `torch.nn.Module` (a copy is put in evaluation mode, on the CPU and in float32), or a
        `torch.export.ExportedProgram` of one tensor to one, of any batch size or of 1.
      input_shape: (H, W, C) of one image in pixel space, whatever the layout.
      layout: of the model's input.
      preprocessing: from pixels to what the model takes, channels last (the layout comes after).
      gives, layers, tolerance: see `dfke_jax.nn.adapters.adapted`.

    Raises:
      InputError: a model that `torch.export` does not take (its Python asks for values), that was
        exported in training mode or for another batch, an operation that is not in
        `dfke_jax.nn.adapters.aten`, or answers that differ from PyTorch's.
    """
    import torch

    if layout not in ("NCHW", "NHWC"):
        raise InputError(f"layout must be 'NCHW' or 'NHWC', not {layout!r}")
    name = type(model).__name__
    size = _laid((2, *input_shape), layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of its own parts
        program = (
            model
            if isinstance(model, torch.export.ExportedProgram)
            else _exported(model, size, name)
        )
        run = program.module()
        instructions, variables, batch = _read(program.run_decompositions({}), name)

    def original(inputs: np.ndarray) -> np.ndarray:
        # a copy that may be written to
        rows = torch.from_numpy(np.array(_moved(inputs, layout), order="C"))
        with torch.no_grad():
            answers = [run(rows[i : i + 1]) for i in range(2)] if batch == 1 else [run(rows)]
        if not all(isinstance(answer, torch.Tensor) for answer in answers):
            raise InputError(
                f"{name} returns {type(answers[0]).__name__}; wrap it so that it returns one tensor"
            )
        return torch.cat(answers).numpy()

    forward = _Forward(tuple(instructions), layout, batch == 1)
    norms = sum(instruction.operation == _NORM for instruction in instructions)
    return adapted(
        forward, variables, original, input_shape, name=name, preprocessing=preprocessing, gives=gives,
        layers=layers, tolerance=tolerance, norms=norms,
    )  # fmt: skip


def _laid(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    batch, height, width, channels = shape
    return (batch, channels, height, width) if layout == "NCHW" else shape


def _moved(inputs: Any, layout: str) -> Any:
    return inputs.transpose(0, 3, 1, 2) if layout == "NCHW" else inputs


def _exported(model: Any, size: tuple[int, ...], name: str) -> Any:
    import torch

    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"{name} is TorchScript, whose operations cannot be read; export the module with "
            "torch.export, or use oracle.frameworks.from_torch, which asks it for answers alone"
        )
    model = copy.deepcopy(model).cpu().float().eval()
    axis = torch.export.Dim("batch", min=1, max=1 << 20)
    try:
        logging.disable()  # PyTorch tells of models that have one batch size at length
        return torch.export.export(model, (torch.zeros(size),), dynamic_shapes=({0: axis},))
    except Exception as free:
        # some models can only be exported for a given batch: one image, and then image by image
        try:
            return torch.export.export(model, (torch.zeros(1, *size[1:]),))
        except Exception:
            line = str(free).strip().split("\n")[0]
            raise InputError(
                f"torch.export does not take {name} ({type(free).__name__}: {line}); "
                "oracle.frameworks.from_torch asks it for answers alone"
            ) from free
    finally:
        logging.disable(logging.NOTSET)


class Ref(NamedTuple):
    """The value of an earlier instruction, or a variable, by name."""

    name: str


class Instruction(NamedTuple):
    """One operation: the name of its value, of the operation, its arguments, and the module it
    belongs to.
    """

    name: str
    operation: str
    arguments: tuple
    options: Mapping[str, Any]
    path: str


def _read(program: Any, name: str) -> tuple[list[Instruction], dict[str, Array], int | None]:
    """The instructions of a program, its arrays, and the batch size that it is fixed to, if it is.

    Args:
      program: after ``run_decompositions({})``: nothing is done in place, and layers are whole.
    """
    import torch

    if program.graph_signature.buffers_to_mutate:
        raise InputError(f"{name} was exported in training mode; call .eval() before torch.export")
    kinds = torch.export.graph_signature.InputKind
    targets, inputs = {}, []
    for spec in program.graph_signature.input_specs:
        if spec.kind == kinds.USER_INPUT:
            inputs.append(spec.arg.name)
        else:
            targets[spec.arg.name] = spec.target
    if len(inputs) != 1:
        raise InputError(
            f"{name} takes {len(inputs)} inputs; wrap it so that it takes one tensor of images"
        )
    arrays = {**program.constants, **program.state_dict}
    variables, instructions, unknown = {}, [], set()
    batch = None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in inputs:
                first = node.meta["val"].shape[0]
                batch = first if isinstance(first, int) else None
                instructions.append(Instruction(node.name, "input", (), {}, ""))
            elif isinstance(arrays.get(targets[node.name]), torch.Tensor):
                variables[node.name] = _array(arrays[targets[node.name]])
        elif node.op == "output":
            instructions.append(Instruction("output", "output", (_plain(node.args[0]),), {}, ""))
        else:
            operation = _operation(node.target)
            if operation in CHECKS:
                continue
            if operation not in OPERATIONS:
                unknown.add(operation)
            options = {key: _plain(value) for key, value in node.kwargs.items()}
            instructions.append(
                Instruction(
                    node.name, operation, tuple(map(_plain, node.args)), options, _path(node)
                )
            )
    if unknown:
        raise InputError(
            f"{name} uses operations that are not known in JAX: {', '.join(sorted(unknown))}; "
            "oracle.frameworks.from_torch asks it for answers alone"
        )
    if batch not in (None, 1):
        raise InputError(
            f"{name} was exported for batches of {batch}; export it for any batch "
            "(dynamic_shapes), or for 1"
        )
    return instructions, variables, batch


def _array(tensor: Any) -> Array:
    values = tensor.detach().cpu().numpy()
    narrow = {"float64": np.float32, "float16": np.float32, "int64": np.int32}.get(
        values.dtype.name
    )
    return jnp.asarray(values if narrow is None else values.astype(narrow))


def _operation(target: Any) -> str:
    """aten.conv2d.default -> conv2d; of Python's operators, their names."""
    packet = getattr(target, "overloadpacket", None)
    return getattr(packet if packet is not None else target, "__name__", str(target))


def _path(node: Any) -> str:
    """Of the innermost module that a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _plain(value: Any) -> Any:
    """Arguments without PyTorch: nodes as `Ref`, types by name."""
    import torch

    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.device | torch.layout | torch.memory_format):
        return None
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class _Forward:
    """Evaluates the instructions; told apart by identity."""

    instructions: tuple[Instruction, ...]
    layout: str
    singly: bool

    def __call__(self, variables: PyTree, inputs: Array) -> Traced:
        inputs = _moved(inputs, self.layout)
        if not self.singly:
            return self._shown(*self._evaluate(variables, inputs))
        # Of a program for one image, image by image; what belongs to no image is not batched.
        seen = lambda x: self._evaluate(variables, x[None])
        answers, values, running, dense = jax.vmap(seen, out_axes=(0, 0, None, (0, None, None)))(
            inputs
        )
        flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
        dense = (flat(dense[0]), *dense[1:])
        return self._shown(flat(answers), jax.tree.map(flat, values), running, dense)

    def _evaluate(self, variables: PyTree, inputs: Array) -> tuple[Array, list, list, tuple]:
        """Answers; (output, what entered normalisation or None) of layers; running statistics; the
        last dense layer.
        """
        values: dict[str, Any] = dict(variables)

        def read(value: Any) -> Any:
            if isinstance(value, Ref):
                return values[value.name]
            return [read(item) for item in value] if isinstance(value, list) else value

        shown, running = [], []
        none = jnp.zeros((inputs.shape[0], 0))
        dense: tuple = (none, jnp.zeros((0, 0)), jnp.zeros(()))
        answers = none
        for name, operation, arguments, options, _ in self.instructions:
            given = [read(value) for value in arguments]
            if operation == "input":
                values[name] = inputs
            elif operation == "output":
                answers = given[0][0] if isinstance(given[0], list) else given[0]
            else:
                values[name] = found = OPERATIONS[operation](
                    *given, **{key: read(value) for key, value in options.items()}
                )
                if operation == _NORM:
                    shown.append((found[0], given[0]))
                    running.append((given[3], given[4]))
                elif operation in _LAYERS:
                    shown.append((found, None))
                if operation in ("linear", "addmm") and found.ndim == 2:
                    dense = _dense(operation, given)
        return answers, shown, running, dense

    def _shown(self, answers: Array, shown: list, running: list, dense: tuple) -> Traced:
        own = [i for i in self.instructions if i.operation == _NORM or i.operation in _LAYERS]
        layers: dict[str, Array] = {}
        normalised = []
        for instruction, (output, entered) in zip(own, shown, strict=True):
            name = instruction.path or instruction.name
            layers[name if name not in layers else f"{name}#{instruction.name}"] = _last(output)
            if entered is not None:
                normalised.append(
                    Normalised(jnp.moveaxis(entered, 1, -1), *running[len(normalised)])
                )
        return Traced(
            answers, layers, tuple(normalised), Dense(*dense) if dense[0].shape[1] else None
        )


def _dense(operation: str, given: list) -> tuple[Array, Array, Array]:
    """What entered a dense layer, its kernel (D, F) and its bias."""
    if operation == "addmm":
        bias, x, kernel = given[:3]
        return x, kernel, bias
    x, weight = given[:2]
    bias = given[2] if len(given) > 2 and given[2] is not None else jnp.zeros(())
    return x, weight.T, bias


def _last(output: Array) -> Array:
    """Maps with channels last."""
    return jnp.moveaxis(output, 1, -1) if output.ndim == 4 else output


__all__ = ["from_torch"]
