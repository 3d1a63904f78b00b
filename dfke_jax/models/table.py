"""The table of openers: which kinds of model there are, and which file opens each."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Opener:
    """A kind of model.

    Attributes:
      kind: its name. takes: what is written, or given, to open one.
      recognises: whether something is such a model. It reads as little as possible and imports
        nothing: an object can only be of a library that is imported already.
      module: with ``open(where, declared) -> Found``.
      needs: the library that it needs, and the extra that brings it.
      file: of kinds whose path is one of a file: what to give where there is none. That is said
        before a library is asked for.
    """

    kind: str
    takes: str
    recognises: Callable[[Any], bool]
    module: str
    needs: tuple[str, str] | None = None
    file: str | None = None


def suffix(*endings: str) -> Callable[[Any], bool]:
    """A path that ends so."""
    return lambda where: isinstance(where, str | Path) and str(where).lower().endswith(endings)


def instance(module: str, *names: str) -> Callable[[Any], bool]:
    """An object of a class of a library, if that is imported."""

    def check(where: Any) -> bool:
        library = sys.modules.get(module)
        kinds = tuple(getattr(library, name) for name in names if hasattr(library, name))
        return bool(kinds) and isinstance(where, kinds)

    return check


def either(*checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """One of these."""
    return lambda where: any(check(where) for check in checks)


def _folder_of(file: str, word: str) -> Callable[[Any], bool]:
    """A directory with a JSON file in which a word stands."""

    def check(where: Any) -> bool:
        path = Path(where) / file if isinstance(where, str | Path) else None
        return path is not None and path.is_file() and word in path.read_text(errors="replace")

    return check


def _directory(where: Any) -> bool:
    return isinstance(where, str | Path) and Path(where).is_dir()


def _address(where: Any) -> bool:
    return isinstance(where, str) and where.startswith(("http://", "https://"))


def _pair(where: Any) -> bool:
    """(module, state) of Equinox."""
    return isinstance(where, tuple) and len(where) == 2 and instance("equinox", "Module")(where[0])


_HERE = "dfke_jax.models.openers."
OPENERS: list[Opener] = [
    Opener("built-in", "digits", lambda where: where == "digits", _HERE + "built_in"),
    Opener("endpoint", "http(s)://...", _address, _HERE + "endpoint", ("httpx", "serve")),
    Opener(
        "declaration",
        "FILE.toml, which names the model and declares",
        suffix(".toml"),
        _HERE + "declaration",
        file="give a TOML file",
    ),
    Opener(
        "name in a file",
        "FILE.py:NAME",
        lambda w: isinstance(w, str) and ".py:" in w,
        _HERE + "named",
    ),
    Opener(
        "PyTorch program",
        "FILE.pt2, FILE.pt, FILE.pth",
        suffix(".pt2", ".pt", ".pth"),
        _HERE + "torch_program",
        ("torch", "torch"),
        "give a file of torch.export.save or torch.jit.save",
    ),
    Opener(
        "ONNX graph",
        "FILE.onnx",
        suffix(".onnx"),
        _HERE + "onnx",
        ("onnxruntime", "onnx"),
        "give an .onnx file",
    ),
    Opener(
        "scikit-learn estimator",
        "FILE.skops, an estimator",
        either(suffix(".skops"), instance("sklearn.base", "BaseEstimator")),
        _HERE + "sklearn",
        ("skops", "sklearn"),
        "give a file of skops.io.dump",
    ),
    Opener(
        "exported model",
        "FILE.safetensors of dfke export",
        suffix(".safetensors"),
        _HERE + "exported",
        ("safetensors", "safetensors"),
        "give a file of `dfke export`",
    ),
    Opener(
        "exported program",
        "FILE.stablehlo of dfke export",
        suffix(".stablehlo"),
        _HERE + "exported",
        ("flatbuffers", "models"),
        "give a file of `dfke export`",
    ),
    Opener(
        "pickle",
        "refused",
        suffix(".pkl", ".pickle", ".joblib"),
        _HERE + "pickled",
        file="no pickle is read, give another kind",
    ),
    Opener(
        "Hugging Face model",
        "a folder with config.json",
        _folder_of("config.json", '"model_type"'),
        _HERE + "hugging_face",
        ("transformers", "huggingface"),
    ),
    Opener(
        "saved model",
        "a directory that dfke_jax wrote, a Classifier",
        either(_directory, instance("dfke_jax.nn.classifier", "Classifier")),
        _HERE + "directory",
    ),
    Opener(
        "PyTorch module",
        "a torch.nn.Module",
        instance("torch.nn", "Module"),
        _HERE + "torch_module",
        ("torch", "torch"),
    ),
    Opener(
        "Linen module",
        "a flax.linen.Module, with weights",
        instance("flax.linen", "Module"),
        _HERE + "linen",
    ),
    Opener("NNX module", "a flax.nnx.Module", instance("flax.nnx", "Module"), _HERE + "nnx"),
    Opener(
        "Equinox module",
        "an equinox.Module, or (module, state)",
        either(instance("equinox", "Module"), _pair),
        _HERE + "equinox_module",
        ("equinox", "equinox"),
    ),
    Opener(
        "ART estimator",
        "a classifier of the Adversarial Robustness Toolbox",
        instance("art.estimators.classification", "ClassifierMixin"),
        _HERE + "art",
        ("art", "art"),
    ),
    Opener(
        "host victim",
        "a HostVictim",
        instance("dfke_jax.oracle.victims", "HostVictim"),
        _HERE + "host_victim",
    ),
    Opener("function", "a function of rows", callable, _HERE + "function"),
]
"""The first that recognises a model opens it. A package of one's own appends, or inserts, its line.
"""

__all__ = ["OPENERS", "Opener", "either", "instance", "suffix"]
