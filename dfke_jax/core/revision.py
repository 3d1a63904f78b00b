"""Which code this is."""

import functools
import os
import subprocess
from pathlib import Path

import jax

from dfke_jax._version import __version__


@functools.cache
def revision() -> str | None:
    """Of the code: DFKE_REVISION where that is set (code without its repository), else what git
    says.
    """
    if os.environ.get("DFKE_REVISION"):
        return os.environ["DFKE_REVISION"]
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def writer() -> dict[str, str | None]:
    """What a file says about who wrote it: the versions of jax and of this package, and its
    revision.
    """
    return {"jax": jax.__version__, "dfke_jax": __version__, "revision": revision()}


__all__ = ["revision", "writer"]
