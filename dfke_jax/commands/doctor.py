"""``dfke doctor``: what this machine can and cannot do with the package, and what would help."""

import argparse
import contextlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from dfke_jax.commands.common import (
    FAILED,
    OK,
    add_data_dir,
    console,
    enable_compilation_cache,
    table,
)

_REQUIRED = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "chex": "chex",
    "tensorflow-datasets": "tensorflow_datasets",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "rich": "rich",
    "tyro": "tyro",
}
_OPTIONAL = {
    "array_record": "data sets of TensorFlow Datasets (no wheel for Windows; digits and files do without)",
    "torch": "the benchmark against PyTorch and the tests of equal weights",
    "tensorboardX": "metrics in TensorBoard",
    "wandb": "metrics in Weights & Biases",
}


class Finding(NamedTuple):
    """One line of the examination.

    Attributes:
      group: heading it belongs to.
      name: what was looked at.
      state: ``ok``; ``missing`` (something optional is absent); ``broken`` (the main job cannot
        run).
      detail: what was found, or the remedy.
    """

    group: str
    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where data are looked for."""
    add_data_dir(parser)


def execute(options: argparse.Namespace) -> int:
    """Prints what was found, by group."""
    from rich.markup import escape

    with contextlib.suppress(ImportError):
        enable_compilation_cache()
    findings = examine(options.data_dir)
    signs = {"ok": "[green]ok[/]", "missing": "[yellow]–[/]", "broken": "[bold red]broken[/]"}
    screen = console()
    for group in dict.fromkeys(finding.group for finding in findings):
        view = table(title=group, title_justify="left", title_style="bold", show_header=False)
        view.add_column(no_wrap=True, min_width=20)
        view.add_column(no_wrap=True, min_width=6)
        view.add_column(overflow="fold")
        absent: dict[str, list[str]] = {}
        for finding in (finding for finding in findings if finding.group == group):
            if finding.group == "data" and finding.state == "missing":
                absent.setdefault(finding.detail.replace(repr(finding.name), "NAME"), []).append(
                    finding.name
                )
            else:
                view.add_row(escape(finding.name), signs[finding.state], escape(finding.detail))
        for remedy, names in absent.items():
            view.add_row("not found", signs["missing"], escape(f"{', '.join(names)}\n{remedy}"))
        screen.print(view)
    able = sound(findings)
    screen.print(
        "The main job can run."
        if able
        else "[bold red]The main job cannot run:[/] see what is broken above."
    )
    return OK if able else FAILED


def examine(data_dir: str | os.PathLike | None = None) -> list[Finding]:
    """Looks at versions, devices, memory, data, optional extras and the current directory."""
    return [*_software(), *_hardware(), *_data(data_dir), *_extras(), _current_directory()]


def sound(findings: list[Finding]) -> bool:
    """Whether the main job can run."""
    return all(finding.state != "broken" for finding in findings)


def _software() -> list[Finding]:
    from dfke_jax._version import __version__

    group = "software"
    enough = sys.version_info >= (3, 11)
    python = f"{platform.python_version()}{'' if enough else '; 3.11 or newer is needed'}"
    rows = [
        Finding(group, "dfke_jax", "ok", __version__),
        Finding(group, "python", "ok" if enough else "broken", python),
    ]
    for package, module in _REQUIRED.items():
        try:
            version = metadata.version(package)
            if not _present(module):
                raise metadata.PackageNotFoundError
            rows.append(Finding(group, package, "ok", version))
        except metadata.PackageNotFoundError:
            rows.append(Finding(group, package, "broken", f"not installed; pip install {package}"))
    return rows


def _hardware() -> list[Finding]:
    group = "machine"
    rows = [
        Finding(
            group,
            "system",
            "ok",
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        )
    ]
    if memory := _memory():
        rows.append(Finding(group, "memory", "ok", memory))
    try:
        import jax

        devices = jax.devices()
        kinds = ", ".join(dict.fromkeys(device.device_kind for device in devices))
        rows.append(Finding(group, "backend", "ok", jax.default_backend()))
        rows.append(Finding(group, "devices", "ok", f"{len(devices)} × {kinds}"))
        total = float(jax.jit(lambda x: x @ x)(jax.numpy.eye(8)).sum())
        right = total == 8.0
        told = "a program compiles and runs" if right else f"a sum of 8 came out as {total}"
        rows.append(Finding(group, "compiling", "ok" if right else "broken", told))
        cache = getattr(jax.config, "jax_compilation_cache_dir", None) or "not in use"
        rows.append(Finding(group, "compilation cache", "ok", str(cache)))
    except Exception as error:  # any failure of JAX is what this is here to tell
        remedy = "set JAX_PLATFORMS=cpu, or install the JAX build for this accelerator"
        rows.append(Finding(group, "jax", "broken", f"{type(error).__name__}: {error}; {remedy}"))
    return rows


def _memory() -> str | None:
    try:
        page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    text = f"{page * pages / 2**30:.1f} GiB"
    with contextlib.suppress(OSError):
        if found := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()):
            text += f", {int(found[1]) / 2**20:.1f} GiB available"
    return text


def _data(data_dir: str | os.PathLike | None) -> list[Finding]:
    group = "data"
    try:
        from dfke_jax.data import available, load

        load("digits")
        return [
            Finding(group, name, "ok" if found else "missing", where)
            for name, found, where in available(data_dir)
        ]
    except Exception as error:  # whatever keeps the bundled set from loading is to be told
        return [Finding(group, "digits", "broken", f"{type(error).__name__}: {error}")]


def _extras() -> list[Finding]:
    rows = []
    for module, purpose in _OPTIONAL.items():
        if _present(module):
            version = "found"
            with contextlib.suppress(metadata.PackageNotFoundError):
                version = metadata.version(module)
            rows.append(Finding("extras", module, "ok", f"{version}: {purpose}"))
        else:
            rows.append(
                Finding("extras", module, "missing", f"for {purpose}: pip install {module}")
            )
    return rows


def _current_directory() -> Finding:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
        free = shutil.disk_usage(here).free / 2**30
    except OSError as error:
        detail = (
            f"{here} cannot be written to ({error.strerror or error}); work elsewhere or pass --out"
        )
        return Finding("disk", "current directory", "broken", detail)
    return Finding("disk", "current directory", "ok", f"{here} is writable, {free:.1f} GiB free")


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


__all__ = ["Finding", "add_options", "examine", "execute", "sound"]
