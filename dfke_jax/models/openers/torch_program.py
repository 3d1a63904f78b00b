"""Programs of PyTorch in files: exported ones (.pt2), and TorchScript."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.models.confined import ConfinedProgram, supported
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import PREPARED, image_shape, prepared, preprocessing
from dfke_jax.nn.whitebox import WhiteBox


def open(where: str, said: Declared) -> Found:
    """An exported program or TorchScript, in a process of its own without rights; or here, if
    trusted.

    An exported program says itself what it takes.

    Raises:
      InputError: it is neither; or the system cannot confine a process and the file is not trusted.
    """
    said.only(*PREPARED, "trusted", kind="a PyTorch program")
    path = Path(where).expanduser()
    _check(path)
    name, layout = path.name, said.layout or "NCHW"
    kind = "an exported PyTorch program" if path.suffix == ".pt2" else "a TorchScript program"
    if said.trusted:
        shape, run = _here(path, said, layout)
        close = None
    else:
        if not supported():
            raise InputError(
                f"{where} may hold foreign code, and this system has no process without rights to "
                "read it in; if the file is yours, declare trusted=true"
            )
        child = ConfinedProgram(str(path), said.num_classes, said.input_shape, layout)
        shape, run, close = child.input_shape, child, child.close
        kind += ", in a process without rights"
    try:
        said.shape(shape, name)
        ready = prepared(said, shape, "NHWC")  # the layout is the program's own business
        plain = ready.mean == (0.0,) and ready.std == (1.0,)
        scale = prepared(Declared(mean=said.mean, std=said.std, layout="NHWC"), shape)
    except BaseException:
        if close is not None:
            close()
        raise
    ask = run if plain else lambda rows: run(np.asarray(scale(rows, np), np.float32))

    def adapt(gives: Any) -> WhiteBox:
        import torch

        from dfke_jax.nn.adapters import from_torch

        program = torch.export.load(path)
        own: Any = layout
        return from_torch(
            program,
            image_shape(shape, name),
            layout=own,
            preprocessing=preprocessing(said),
            gives=gives,
        )

    readable = bool(said.trusted) and path.suffix == ".pt2"
    return Found(kind, name, shape, ask=ask, close=close, adapt=adapt if readable else None)


def _check(path: Path) -> None:
    """Looks at the names in an archive: weights alone, and pickled modules, are no programs."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no PyTorch program: {error}") from error
    if path.suffix != ".pt2" and not any(
        "/code/" in name or name.startswith("code/") for name in names
    ):
        raise InputError(
            f"{path} holds weights or a pickled module, and no program; say whose weights they "
            f"are: open the class, FILE.py:NAME, with weights={path.name}"
        )


def _here(path: Path, said: Declared, layout: str) -> tuple[tuple[int, ...], Any]:
    """Shape of a row, and what asks a trusted program in this process."""
    import torch

    from dfke_jax.models.confined import loaded, rows_of

    try:
        module, fixed, sizes, precision = loaded(torch, str(path))
    except Exception as error:
        raise InputError(
            f"{path} holds no program that can be read: {type(error).__name__}: {error}"
        ) from error
    found = rows_of(sizes, layout)
    shape = said.shape(found, path.name)

    def ask(rows: np.ndarray) -> np.ndarray:
        from dfke_jax.models.confined import answers

        return answers(
            torch, module, fixed, precision, np.ascontiguousarray(rows, np.float32), layout
        )

    return shape, ask


__all__ = ["open"]
