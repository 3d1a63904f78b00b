"""The scripts of `examples/` as modules, each loaded once."""

import functools
import importlib.util
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@functools.cache
def example(name):
    """The module of ``examples/NAME.py``; names may lead into a folder: ``howto/noise_labels``."""
    title = f"examples.{name.replace('/', '.')}"
    specification = importlib.util.spec_from_file_location(title, EXAMPLES / f"{name}.py")
    sys.modules[title] = module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
