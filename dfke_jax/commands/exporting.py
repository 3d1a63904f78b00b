"""``dfke export``: a model in another format."""

import argparse
from pathlib import Path

from dfke_jax.commands.common import OK, enable_compilation_cache
from dfke_jax.commands.models import MODEL, add_declarations, declarations

_SUFFIX = {
    "safetensors": ".safetensors",
    "stablehlo": ".stablehlo",
    "onnx": ".onnx",
    "torch": ".pt",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_declarations(parser)
    parser.add_argument("--to", required=True, choices=tuple(_SUFFIX), help="the format")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="(default: the model's name with the format's ending)",
    )


def execute(options: argparse.Namespace) -> int:
    """Writes the model and says where."""
    from dfke_jax.models import export, open_model
    from dfke_jax.models.exporting import free_files

    if options.out is not None:  # before a model is trained, or read
        free_files(options.to, options.out.expanduser())
    enable_compilation_cache()
    with open_model(options.model, declarations(options.declare)) as model:
        network = model.needed_classifier(f"an export to {options.to}")
        out = options.out or Path(f"{Path(model.name).stem}{_SUFFIX[options.to]}")
        files = export(network, options.to, out)
    for file in files:
        print(f"written  {file}")
    if options.to == "torch":
        print(f"open it  {files[1]}:net with weights={files[0].name}")
    return OK


__all__ = ["add_options", "execute"]
