"""Values that a run makes once: they come back as they were written, to the bit, or are refused."""

import numpy as np
import pytest

from dfke_jax.core.errors import CheckpointError
from dfke_jax.experiments.bench.kept import once

VALUE = {
    "figures": {"welch": 1e-300, "third": 1 / 3, "never": float("inf"), "count": 7, "none": None},
    "distances": (np.float32([[0.1, np.nan], [2.0, 3.0]]), np.arange(3)),
    "array": {"array": "0", "items": ["é", True]},
    "scalar": np.float64(0.1),
}


def test_what_comes_back_is_what_was_made(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return VALUE

    path = tmp_path / "seed0" / "scheme.attack.npz"
    first, second = (once(path, "abc", make) for _ in range(2))
    assert calls == [1]
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    for found in (first, second):
        assert found["figures"] == VALUE["figures"]
        assert found["array"] == VALUE["array"]
        assert found["scalar"] == 0.1
        for kept, array in zip(found["distances"], VALUE["distances"], strict=True):
            assert kept.dtype == array.dtype
            np.testing.assert_array_equal(kept, array)
        assert isinstance(found["distances"], list)


def test_a_value_of_other_settings_is_refused(tmp_path):
    once(tmp_path / "value.npz", "abc", lambda: 1)
    with pytest.raises(CheckpointError, match="another configuration, or from other data"):
        once(tmp_path / "value.npz", "abd", lambda: 2)


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        once(tmp_path / "value.npz", "abc", lambda: 1 / 0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError):
        once(tmp_path / "value.npz", "abc", lambda: object())
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_says_so_and_what_to_do(tmp_path):
    path = tmp_path / "value.npz"
    once(path, "abc", lambda: VALUE)
    whole = path.read_bytes()
    for damaged in (b"", whole[:200], whole[: len(whole) // 2], whole[:90] + b"????" + whole[94:], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"value.npz is damaged .*; remove it to have it anew"):
            once(path, "abc", lambda: 1 / 0)


def test_what_cannot_be_written_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(file, **_):
        file.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(CheckpointError, match=r"could not write .*value.npz: No space left on device"):
        once(tmp_path / "value.npz", "abc", lambda: 1)
    assert not list(tmp_path.iterdir())
