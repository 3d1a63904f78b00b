"""Files that commands write what they found to: looked at before the work begins, and never a
reason to lose it.
"""

from pathlib import Path

from dfke_jax.core.checkpoint import writable_directory, write_whole
from dfke_jax.core.errors import CheckpointError, InputError


def claim_file(path: Path, option: str) -> Path:
    """Makes sure, before any long work, that a new file can be written; missing directories are
    made.

    Args:
      path: of the file. option: which names it, for messages.

    Returns:
      The path.

    Raises:
      InputError: for a path that exists, or is in no place that can be written to.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists and nothing is overwritten; choose another {option}")
    try:
        writable_directory(path.parent, needed_bytes=2**20)
    except CheckpointError as error:
        raise InputError(f"{option} {path}: {error}") from error
    return path


def write_found(path: Path, text: str) -> Path:
    """Writes what was found; where that fails, it is printed, because to find it again may not be
    possible.

    Raises:
      CheckpointError: when the file could not be written.
    """
    try:
        return write_whole(path, text)
    except OSError as error:
        print(text)
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; what belongs there stands above"
        ) from error


__all__ = ["claim_file", "write_found"]
