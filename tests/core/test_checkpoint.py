"""Checkpoints: exact, refused where they do not belong, and sure to be writable before long work."""

import collections
import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import __version__, core
from dfke_jax.core import checkpoint, revision


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "a"
    inner: Inner = Inner()
    where: Path = Path("x/y")


def state():
    return {
        "weights": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 7,
        "half": jnp.ones(3, jnp.bfloat16) / 3,
        "count": jnp.int32(5),
        "mask": jnp.array([True, False]),
        "bytes": jnp.arange(4, dtype=jnp.uint8),
        "nothing": jnp.zeros((0, 3)),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 2),
    }


def assert_same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("like", ["arrays", "shapes"])
def test_round_trip(tmp_path, like):
    saved = state()
    core.save(tmp_path / "a", saved, config="c", metadata={"note": 1})
    wanted = saved if like == "arrays" else jax.eval_shape(state)
    assert_same_bits(core.restore(tmp_path / "a", wanted, config="c"), saved)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_of_every_generator(tmp_path, kind):
    make = lambda: {"key": jax.random.split(jax.random.key(1, impl=kind), 3)}
    core.save(tmp_path / "a", make())
    for like in (make(), jax.eval_shape(make)):
        assert_same_bits(core.restore(tmp_path / "a", like), make())


def test_named_tuples_and_bare_numbers(tmp_path):
    Pair = collections.namedtuple("Pair", "a b")
    core.save(tmp_path / "a", Pair(1.5, [2, ()]))
    found = core.restore(tmp_path / "a", Pair(0.0, [0, ()]))
    assert isinstance(found, Pair)
    assert (float(found.a), int(found.b[0]), found.b[1]) == (1.5, 2, ())


def test_restoring_onto_a_mesh(tmp_path, four):
    array, mesh = jnp.arange(8.0), core.device_mesh(4, devices=four)
    core.save(tmp_path / "a", {"x": array})
    placed = core.restore(tmp_path / "a", {"x": core.shard(array, mesh, "models")})["x"]
    assert {s.data.shape for s in placed.addressable_shards} == {(2,)}
    np.testing.assert_array_equal(placed, array)
    core.save(tmp_path / "b", {"x": placed})
    alone = core.restore(tmp_path / "b", jax.eval_shape(lambda: {"x": array}))["x"]
    np.testing.assert_array_equal(alone, array)
    np.testing.assert_array_equal(core.shard(array, mesh, "models") + alone, 2 * array)


def test_saving_again_replaces(tmp_path):
    core.save(tmp_path / "a", {"x": jnp.zeros(2)})
    core.save(tmp_path / "a", {"x": jnp.ones(2)})
    np.testing.assert_array_equal(core.restore(tmp_path / "a", {"x": jnp.zeros(2)})["x"], [1, 1])


def test_another_configuration_is_refused(tmp_path):
    core.save(tmp_path / "a", {"x": jnp.zeros(2)}, config="old")
    for config in ("new", ""):
        with pytest.raises(
            core.CheckpointError, match=r"written by another configuration .*'old'.*another output directory"
        ):
            core.restore(tmp_path / "a", {"x": jnp.zeros(2)}, config=config)
    core.Checkpoints(tmp_path / "run", config="old").save(3, {"x": jnp.zeros(2)})
    with pytest.raises(core.CheckpointError, match="another configuration"):
        core.Checkpoints(tmp_path / "run", config="new").restore({"x": jnp.zeros(2)})


def test_a_run_refuses_to_resume_another_configuration(tmp_path):
    method = core.method(lambda key: jnp.zeros(2), lambda key, x: (x + 1, {"loss": x.sum()}))
    core.run(method, jax.random.key(0), 2, checkpoints=core.Checkpoints(tmp_path, config="a"))
    with pytest.raises(core.CheckpointError, match="another configuration"):
        core.run(method, jax.random.key(0), 4, checkpoints=core.Checkpoints(tmp_path, config="b"), resume=True)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(core.CheckpointError, match=f"there is no checkpoint at {tmp_path / 'none'}"):
        core.restore(tmp_path / "none", {"x": jnp.zeros(2)})
    with pytest.raises(core.CheckpointError, match="there is no checkpoint in"):
        core.Checkpoints(tmp_path / "run").restore({"x": jnp.zeros(2)})


def test_a_damaged_directory_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "junk").write_text("junk")
    with pytest.raises(core.CheckpointError, match=f"{tmp_path / 'a'} cannot be read"):
        core.restore(tmp_path / "a", {"x": jnp.zeros(2)})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax drops what else it was reading
def test_flipped_bits_are_found(tmp_path):
    """In the files that hold the numbers, which the format itself does not check."""
    saved = {"x": jax.random.normal(jax.random.key(0), (20_000,)), "n": jnp.arange(50)}
    core.save(tmp_path / "a", saved, config="c")
    files = [path for path in (tmp_path / "a").glob("**/d/*") if path.stat().st_size > 20_000]
    generator, found = np.random.default_rng(0), 0
    for place in generator.uniform(size=12):
        contents = {path: path.read_bytes() for path in files}
        for path, whole in contents.items():
            damaged = bytearray(whole)
            damaged[int(place * len(whole))] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
        try:
            assert_same_bits(core.restore(tmp_path / "a", saved, config="c"), saved)
        except core.DamagedCheckpointError as error:
            found += "array 1 of 2 (float32[20000]) is not what was written" in str(error)
        for path, whole in contents.items():
            path.write_bytes(whole)
    assert found > 3, "damage that the reader of the format lets pass"
    assert_same_bits(core.restore(tmp_path / "a", saved, config="c"), saved)


@pytest.mark.parametrize("damage", ["flipped", "half written", "empty"])
def test_damage_to_the_newest_state_names_the_older_sound_one(tmp_path, damage, monkeypatch):
    like = {"x": jnp.zeros(200)}
    checkpoints = core.Checkpoints(tmp_path, keep=3)
    for step in (2, 4, 6):
        checkpoints.save(step, {"x": jnp.full(200, float(step))})
    for step in (6, 4):
        if damage == "flipped":  # whatever the format does about it
            sums = checkpoint._checksums
            flip = lambda leaves, sums=sums: sums([leaf + 1 if float(leaf[0]) > 3 else leaf for leaf in leaves])
            monkeypatch.setattr(checkpoint, "_checksums", flip)
            continue
        for path in (tmp_path / str(step)).rglob("*"):
            if path.is_file():
                path.unlink() if damage == "empty" else path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(core.DamagedCheckpointError, match=rf"remove {tmp_path / '6'} to go on from .* after step 2$"):
        checkpoints.restore(like)
    np.testing.assert_array_equal(checkpoints.restore(like, 2)["x"], 2.0)
    shutil.rmtree(tmp_path / "2")
    with pytest.raises(core.DamagedCheckpointError, match=rf"no older sound state .* remove {tmp_path / '6'} to begin"):
        checkpoints.restore(like)


def test_a_checkpoint_says_who_wrote_it(tmp_path, monkeypatch):
    checkpoints = core.Checkpoints(tmp_path, config="a")
    checkpoints.save(1, {"x": jnp.zeros(2)}, metadata={"note": 3})
    facts = checkpoints.facts(1)
    assert facts["written_by"] == {"jax": jax.__version__, "dfke_jax": __version__, "revision": revision.revision()}
    assert facts["note"] == 3
    with pytest.raises(core.CheckpointError) as same:
        core.restore(tmp_path / "1", {"x": jnp.zeros(2)}, config="b")
    assert "written by jax" not in str(same.value)
    monkeypatch.setattr(checkpoint, "writer", lambda: {"jax": "99.0", "dfke_jax": "9.9", "revision": "other"})
    with pytest.raises(
        core.CheckpointError, match=rf"written by jax {jax.__version__}.* and this is jax 99.0, .*other"
    ):
        core.restore(tmp_path / "1", {"x": jnp.zeros(2)}, config="b")


@pytest.mark.parametrize(
    "like",
    [
        {"x": jnp.zeros((3, 2))},
        {"x": jnp.zeros((2, 4))},
        {"x": jnp.zeros((2, 3), jnp.int32)},
        {"x": jnp.zeros((2, 3)), "y": jnp.zeros(1)},
        {},
    ],
    ids=["transposed", "larger", "type", "more", "fewer"],
)
def test_another_structure_is_refused_and_nothing_is_cast(tmp_path, like):
    core.save(tmp_path / "a", {"x": jnp.ones((2, 3))})
    with pytest.raises(core.CheckpointError, match="does not fit this run"):
        core.restore(tmp_path / "a", like)


def test_the_newest_two_are_kept(tmp_path):
    checkpoints = core.Checkpoints(tmp_path / "run", keep=2)
    assert checkpoints.latest is None
    for step in (2, 9, 10, 11):
        checkpoints.save(step, {"x": jnp.full(2, float(step))})
    assert checkpoints.steps() == [10, 11], "as numbers, not as text"
    assert checkpoints.latest == 11
    like = {"x": jnp.zeros(2)}
    np.testing.assert_array_equal(checkpoints.restore(like)["x"], [11, 11])
    np.testing.assert_array_equal(checkpoints.restore(like, 10)["x"], [10, 10])
    (tmp_path / "run" / "notes").mkdir()
    (tmp_path / "run" / "12").write_text("a file")
    assert checkpoints.latest == 11
    checkpoints.clear()
    assert checkpoints.steps() == []
    assert (tmp_path / "run" / "notes").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(core.CheckpointError, match=r"cannot write to .*file/run: .*; choose another directory"):
        core.Checkpoints(tmp_path / "file" / "run")
    with pytest.raises(core.CheckpointError, match="choose another directory"):
        core.save(tmp_path / "file" / "a", {"x": jnp.zeros(2)})


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 * 2**20))
    with pytest.raises(core.CheckpointError, match="has 3 MiB left and this needs about 64 MiB"):
        core.Checkpoints(tmp_path / "run")
    assert core.writable_directory(tmp_path / "small", needed_bytes=2**20) == tmp_path / "small"
    assert list((tmp_path / "small").iterdir()) == [], "the probe is gone"


def test_a_disk_that_fills_while_it_is_written(tmp_path):
    """No file may grow beyond a few bytes: what the system then says arrives as a `CheckpointError`."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(core.CheckpointError, match="could not write the checkpoint"):
            core.save(tmp_path / "state", {"w": jnp.arange(100_000.0)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "state").exists()


def test_fingerprints():
    assert core.fingerprint({"sizes": (1, 2), "name": "a"}) == "e75d2502e2fead3d", "old checkpoints stay readable"
    assert core.fingerprint(Config()) == core.fingerprint(
        {"where": "x/y", "inner": {"sizes": [1, 2], "rate": 0.1}, "name": "a"}
    )
    others = [
        Config(name="b"),
        Config(inner=Inner(rate=0.2)),
        Config(inner=Inner(sizes=(2, 1))),
        Config(where=Path("z")),
    ]
    prints = {core.fingerprint(config) for config in (Config(), *others)}
    assert len(prints) == 5
    assert all(len(text) == 16 for text in prints)
    with pytest.raises(TypeError, match="no place in a configuration"):
        core.fingerprint({"f": object()})
