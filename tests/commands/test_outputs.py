"""What commands write: found before the work, never lost, and readable on any terminal."""

import io
import os
import subprocess
import sys

import pytest

from dfke_jax import cli
from dfke_jax.commands.outputs import claim_file, write_found
from dfke_jax.core.errors import CheckpointError, InputError


def test_a_file_is_claimed_before_the_work(tmp_path):
    path = claim_file(tmp_path / "new" / "v.json", "--out")
    assert path.parent.is_dir()
    assert not path.exists()
    path.write_text("{}")
    with pytest.raises(InputError, match="nothing is overwritten; choose another --out"):
        claim_file(path, "--out")
    with pytest.raises(InputError, match=r"--out .*cannot write to"):
        claim_file(path / "below", "--out")


def test_what_was_found_is_printed_where_it_cannot_be_written(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="stands above"):
        write_found(tmp_path / "gone" / "v.json", '{"stolen": true}')
    assert '{"stolen": true}' in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_text_degrades_on_a_terminal_without_the_letters(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["list", "--models"]) == 0
    print("α ± 日本", flush=True)
    assert "\\u65e5" in stream.buffer.getvalue().decode(encoding)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_run_ends_with_its_report_whatever_the_terminal(tmp_path, encoding):
    small = "--teacher mlp_small --teacher-steps 20 --distillation-steps 10 --seeds 1 --samples 20 --synthesis-batch 20"
    command = [
        sys.executable,
        "-m",
        "dfke_jax.cli",
        "run",
        "data-impressions",
        *small.split(),
        "--out",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode(encoding)[-2000:]
    assert (tmp_path / "r" / "report.html").exists()
