"""Programs of strangers are read where they can do nothing."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.models import confined
from dfke_jax.models.confined import ConfinedProgram, supported

torch = pytest.importorskip("torch")
linux = pytest.mark.skipif(not supported(), reason="needs Linux on x86-64 or 64-bit ARM")
SHAPE = (4, 4, 2)


class Scores(torch.nn.Module):
    """Takes NCHW, and tells its axes apart."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.linspace(-1, 1, 32 * 5).reshape(32, 5).sin())

    def forward(self, x):
        return x.flatten(1) @ self.weights


def exported(path, rows=None):
    """A .pt2 file; for any batch, or for one of so many rows."""
    dynamic = None if rows else ({0: torch.export.Dim("rows")},)
    torch.export.save(torch.export.export(Scores(), (torch.zeros(rows or 2, 2, 4, 4),), dynamic_shapes=dynamic), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """For three rows at a time; that one for any number is read is shown by the command's test."""
    return exported(tmp_path_factory.mktemp("program") / "scores.pt2", rows=3)


def crafted(program, path, payload):
    """The program, its sample inputs replaced by an object whose unpickling runs a text and gives such inputs."""

    class Runs:
        def __reduce__(self):
            return eval, (f"[exec({payload!r}, {{}}), __import__('torch').zeros(3, 2, 4, 4)][1]",)

    content = io.BytesIO()
    torch.save(((Runs(),), {}), content)
    with zipfile.ZipFile(program) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        for name in whole.namelist():
            made.writestr(name, content.getvalue() if "sample_inputs" in name else whole.read(name))
    return path


def answers_rightly(path):
    """Whether a file is read, and its scores are those of the module."""
    rows = np.random.default_rng(0).random((7, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        wanted = Scores()(torch.tensor(rows.transpose(0, 3, 1, 2))).double().numpy()
    suspect = ConfinedProgram(str(path), 5, SHAPE)
    try:
        np.testing.assert_allclose(suspect(rows), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(suspect(rows[:1]), wanted[:1], rtol=1e-5, atol=1e-6)
    finally:
        suspect.close()


@linux
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tracing
def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.trace(Scores(), torch.zeros(2, 2, 4, 4)), tmp_path / "scores.pt")
    answers_rightly(tmp_path / "scores.pt")


@linux
def test_a_crafted_file_writes_connects_and_starts_nothing(program, tmp_path):
    marks = [tmp_path / name for name in ("written", "started", "moved", "linked")]
    (tmp_path / "mine").write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        payload = textwrap.dedent(f"""
            import ctypes, os, shutil, signal, socket, subprocess
            def tries(*what):
                for one in what:
                    try: one()
                    except BaseException: pass
            tries(
                lambda: open({str(marks[0])!r}, "w").write("here"),
                lambda: os.system("touch {marks[1]}"),
                lambda: subprocess.run(["touch", {str(marks[1])!r}]),
                lambda: os.rename({str(tmp_path / "mine")!r}, {str(marks[2])!r}),
                lambda: os.symlink("/", {str(marks[3])!r}),
                lambda: os.remove({str(tmp_path / "mine")!r}),
                lambda: socket.create_connection({server.getsockname()!r}, 1),
                lambda: os.kill(os.getppid(), signal.SIGTERM),
                lambda: ctypes.CDLL(None).system(b"touch {marks[1]}"),
            )
        """)
        path = crafted(program, tmp_path / "crafted.pt2", payload)
        answers_rightly(path)  # that it runs is not the harm; seven rows are asked three at a time
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    assert not any(mark.exists() or mark.is_symlink() for mark in marks)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.slow
def test_the_crafted_file_is_what_it_is_taken_for(program, tmp_path):
    """Read with rights, it writes."""
    mark = tmp_path / "written"
    path = crafted(program, tmp_path / "crafted.pt2", f"open({str(mark)!r}, 'w').write('here')")
    command = f"import torch, warnings; warnings.simplefilter('ignore'); torch.export.load({str(path)!r})"
    subprocess.run([sys.executable, "-c", command], capture_output=True, check=False)
    assert mark.exists()


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("import os; os._exit(0)", "ended without an answer"),
        (
            "import os; os.write(1, bytes([1]) + (9).to_bytes(8, 'little') + b'\\x1b[2Jhello'); os._exit(0)",
            r"\?\[2Jhello",
        ),
        ("import os; os.write(1, bytes(9) + bytes(40)); os._exit(0)", "a wrong answer"),
        ("import os; os.write(1, bytes([0]) + b'\\xff' * 8); os._exit(0)", "a wrong answer"),
        ("import time; time.sleep(600)", "did not answer within 3 seconds"),
    ],
)
def test_what_a_hostile_process_says_is_not_believed(program, tmp_path, monkeypatch, payload, message):
    if "sleep" in payload:
        monkeypatch.setattr(confined, "WAIT", 3.0)
    path = crafted(program, tmp_path / "crafted.pt2", payload)

    def ask():
        with contextlib.closing(ConfinedProgram(str(path), 5, SHAPE)) as suspect:
            suspect(np.zeros((1, *SHAPE), np.float32))

    with pytest.raises(InputError, match=message) as caught:
        ask()
    assert str(caught.value).isprintable()


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "shape"),
    [
        ("nothing.pt2", lambda path: path.write_bytes(b"nothing"), SHAPE),
        ("pickled.pt2", lambda path: torch.save(Scores(), path), SHAPE),
        ("pickled.pt", lambda path: torch.save(Scores(), path), SHAPE),
        ("other.pt2", exported, (4, 4, 1)),
    ],
)
def test_what_is_no_program(tmp_path, name, make, shape):
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match="holds no program that can be asked"):
        ConfinedProgram(str(path), 5, shape)


def test_nothing_is_read_where_a_process_cannot_be_confined(program, monkeypatch):
    monkeypatch.setattr(confined.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(confined.subprocess, "Popen", None)
    with pytest.raises(InputError, match="no process without rights to read it in; serve it elsewhere"):
        ConfinedProgram(str(program), 5, SHAPE)


def test_calls_have_the_numbers_of_the_kernel_headers():
    """Both columns of the table against the headers, where this system has them."""
    found = []
    tables = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")]
    for column, header in enumerate(tables):
        if not header.exists():
            continue
        numbers = {}
        for line in header.read_text().splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[0] == "#define" and parts[2].isdigit():
                name = parts[1].removeprefix("__NR3264_").removeprefix("__NR_")
                numbers["newfstatat" if (name, column) == ("fstatat", 1) else name] = int(parts[2])
        rows = {**confined._ALLOWED, **{n: row[0] for n, row in {**confined._WITHOUT, **confined._WITH}.items()}}
        for name, both in rows.items():
            if both[column] is not None:
                found.append((name, both[column], numbers[name]))
    if not found:
        pytest.skip("no kernel headers here")
    assert [one for one in found if one[1] != one[2]] == []


@pytest.mark.slow
def test_the_environment_and_its_secrets_stay_outside(program, tmp_path, monkeypatch):
    """What it may read it cannot tell: here it says its environment, which is nearly empty."""
    if not supported():
        pytest.skip("needs Linux on x86-64 or 64-bit ARM")
    monkeypatch.setenv("API_KEY", "a secret")
    payload = (
        "import os; t = str(sorted(os.environ)).encode(); os.write(1, bytes([1]) + len(t).to_bytes(8, 'little') + t)"
    )
    with pytest.raises(InputError) as caught:
        ConfinedProgram(str(crafted(program, tmp_path / "crafted.pt2", payload)), 5, SHAPE)
    assert "API_KEY" not in str(caught.value)
    assert "TORCHINDUCTOR_CACHE_DIR" in str(caught.value)
    assert os.environ["API_KEY"] == "a secret"
