"""The loop: chunks, guard, trackers, interruption and resumption to the same bits."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import dfke_jax
from dfke_jax import core
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import Training, optimiser, training

KEY = jax.random.key(7)


def begin(scale, key):
    return {"x": jax.random.normal(key, (3,)), "n": jnp.zeros((), jnp.int32), "key": jax.random.fold_in(key, 9)}


def walk(scale, key, state):
    x = state["x"] + scale * jax.random.normal(key, (3,))
    x = x + 0.01 * jax.random.normal(state["key"], (3,))
    state = {"x": x, "n": state["n"] + 1, "key": jax.random.fold_in(state["key"], 0)}
    return state, {"loss": jnp.square(x).sum(), "n": state["n"].astype(jnp.float32)}


def fails_at(scale, key, state):
    state, metrics = walk(scale, key, state)
    return state, {"fine": metrics["loss"], "loss": jnp.where(state["n"] == 8, jnp.nan, metrics["loss"])}


WALK = core.method(begin, walk, jnp.float32(0.5))


def plain(state):
    return [np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(state)]  # fmt: skip


def assert_same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(plain(first), plain(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


class Recorder:
    def __init__(self):
        self.records, self.rewound = [], []

    def log(self, step, metrics):
        self.records.append((step, metrics))

    def rewind(self, step):
        self.rewound.append(step)

    def close(self):
        pass


def test_a_run_is_init_and_steps_with_folded_keys():
    result = core.run(WALK, KEY, 7, chunk=3)
    state = WALK.init(jax.random.fold_in(KEY, jnp.uint32(2**32 - 1)))
    losses = []
    for step in range(7):
        state, metrics = WALK.step(jax.random.fold_in(KEY, step), state)
        losses.append(metrics["loss"])
    np.testing.assert_allclose(result.state["x"], state["x"], rtol=1e-6)
    np.testing.assert_allclose(result.metrics["loss"], losses, rtol=1e-6)
    assert result.metrics["loss"].shape == (7,)
    assert result.steps == 7
    assert result.state["n"] == 7


@pytest.mark.parametrize(
    ("steps", "chunk", "ends"),
    [(10, 4, [4, 8, 10]), (5, None, [1, 2, 3, 4, 5]), (25, None, [*range(2, 25, 2), 25]), (3, 100, [3])],
)
def test_chunks_begin_at_multiples(steps, chunk, ends):
    seen = []
    core.run(WALK, KEY, steps, chunk=chunk, callback=lambda done, state, metrics: seen.append(done))
    assert seen == ends


def test_chunk_length_does_not_change_the_numbers():
    one, four = core.run(WALK, KEY, 8, chunk=1), core.run(WALK, KEY, 8, chunk=4)
    np.testing.assert_allclose(one.state["x"], four.state["x"], rtol=1e-6)
    np.testing.assert_allclose(one.metrics["loss"], four.metrics["loss"], rtol=1e-6)


def test_a_given_state_is_where_it_starts():
    start = {"x": jnp.full(3, 100.0), "n": jnp.int32(40), "key": jax.random.key(0)}
    result = core.run(WALK, KEY, 2, state=start)
    assert result.state["n"] == 42
    assert float(result.state["x"].mean()) > 90


def test_a_checkpoint_is_resumed_whatever_state_is_given(tmp_path):
    start = {"x": jnp.full(3, 100.0), "n": jnp.int32(40), "key": jax.random.key(0)}
    checkpoints = core.Checkpoints(tmp_path)
    whole = core.run(WALK, KEY, 6, chunk=2, state=start)
    core.run(WALK, KEY, 4, chunk=2, state=start, checkpoints=checkpoints, resume=True)
    resumed = core.run(WALK, KEY, 6, chunk=2, state=start, checkpoints=checkpoints, resume=True)
    assert len(resumed.metrics["loss"]) == 2
    assert_same_bits(resumed.state, whole.state)


@pytest.mark.parametrize("hosted", [False, True])
def test_a_given_state_stays_the_callers(hosted):
    start = {"x": jnp.full(3, 100.0), "n": jnp.int32(40), "key": jax.random.key(0)}
    kept = jax.tree.map(jnp.copy, start)
    core.run(core.HostMethod(WALK.init, WALK.step) if hosted else WALK, KEY, 2, state=start)
    assert_same_bits(start, kept)
    network = Classifier.create(MLP(3, (4,)), jax.random.key(0), (2, 2, 1))
    images, labels = jnp.ones((6, 2, 2, 1)), jnp.arange(6) % 3
    rule = optimiser("sgd", 0.1)
    method = training(network, images, labels, loss=Partial(cross_entropy), optimizer=rule, batch_size=2)
    state = Training(network.variables, rule.init(network.variables["params"]))
    core.run(method, KEY, 2, state=state)
    assert np.isfinite(np.asarray(network(images))).all()


def test_stop_ends_the_run_early(tmp_path):
    checkpoints = core.Checkpoints(tmp_path)
    seen = []

    def stop(metrics):
        seen.append(metrics["n"].tolist())
        return metrics["n"][-1] >= 6

    result = core.run(WALK, KEY, 20, chunk=3, stop=stop, checkpoints=checkpoints, every=100)
    assert seen == [[1, 2, 3], [4, 5, 6]], "it sees the metrics of its chunk"
    assert result.steps == 6
    assert len(result.metrics["loss"]) == 6
    assert checkpoints.steps() == [6], "the end is saved whatever `every` says"


def test_a_run_that_was_ended_stays_ended(tmp_path):
    checkpoints = core.Checkpoints(tmp_path)
    stop = lambda metrics: metrics["n"][-1] >= 6
    first = core.run(WALK, KEY, 20, chunk=3, stop=stop, checkpoints=checkpoints, resume=True)
    again = core.run(WALK, KEY, 20, chunk=3, stop=stop, checkpoints=checkpoints, resume=True)
    assert (first.steps, again.steps, again.metrics) == (6, 6, {})
    assert_same_bits(again.state, first.state)
    longer = core.run(WALK, KEY, 9, chunk=3, checkpoints=checkpoints, resume=True)
    assert longer.steps == 9, "nobody asks for an early end"


def test_every_so_many_chunks_are_saved(tmp_path):
    checkpoints = core.Checkpoints(tmp_path, keep=10)
    core.run(WALK, KEY, 11, chunk=2, checkpoints=checkpoints, every=2)
    assert checkpoints.steps() == [4, 8, 11]


def test_non_finite_metrics_name_step_and_metric(tmp_path):
    method = core.method(begin, fails_at, jnp.float32(0.5))
    with pytest.raises(core.NonFiniteError, match=r"^metric 'loss' is not finite at step 7 \(.* a step before\)$"):
        core.run(method, KEY, 20, chunk=4)
    checkpoints = core.Checkpoints(tmp_path)
    with pytest.raises(core.NonFiniteError, match=r"'loss'.* step 7 .*; the last sound state is that after step 4 in"):
        core.run(method, KEY, 20, chunk=4, checkpoints=checkpoints)
    assert checkpoints.steps() == [4], "the spoilt state is not saved"


@pytest.mark.parametrize("hosted", [False, True])
def test_nan_in_the_state_is_found_though_the_metrics_are_finite(tmp_path, hosted):
    def step(scale, key, state):
        inner, metrics = walk(scale, key, state["inner"])
        spoilt = {**inner, "x": inner["x"].at[1].set(jnp.where(inner["n"] > 6, jnp.nan, 0.0))}
        return {"inner": spoilt, "best": state["best"]}, {"n": metrics["n"]}

    def first(scale, key):
        return {"inner": begin(scale, key), "best": jnp.full(2, jnp.inf)}

    method = core.method(first, step, jnp.float32(0.5))
    method = core.HostMethod(method.init, method.step) if hosted else method
    checkpoints = core.Checkpoints(tmp_path)
    with pytest.raises(
        core.NonFiniteError, match=r"state holds NaN after step 7: \['inner'\]\['x'\]; .* after step 4 in"
    ):
        core.run(method, KEY, 20, chunk=4, checkpoints=checkpoints)
    assert checkpoints.steps() == [4], "infinity that stands for 'not found yet' is no fault"


@pytest.mark.parametrize(
    "key", [jax.random.PRNGKey(0), np.zeros(2, np.uint32), 0, None], ids=["old", "numpy", "int", "none"]
)
def test_keys_that_are_not_typed_are_refused_in_words(key):
    with pytest.raises(core.InputError, match=r"typed key, jax\.random\.key\(0\), not"):
        core.run(WALK, key, 2)


def test_the_second_run_in_a_directory_is_told_at_once(tmp_path):
    refused = []

    def callback(done, state, metrics):
        with pytest.raises(core.CheckpointError) as caught:
            core.run(WALK, KEY, 2, checkpoints=core.Checkpoints(tmp_path))
        refused.append(str(caught.value))

    core.run(WALK, KEY, 1, checkpoints=core.Checkpoints(tmp_path), callback=callback)
    assert f"process {os.getpid()} on " in refused[0]
    assert f"is at work in {tmp_path}" in refused[0]
    core.run(WALK, KEY, 1, checkpoints=core.Checkpoints(tmp_path))


def test_trackers_get_the_mean_of_every_chunk():
    tracker = Recorder()
    result = core.run(WALK, KEY, 5, chunk=2, trackers=[tracker])
    assert [step for step, _ in tracker.records] == [2, 4, 5]
    assert [record["n"] for _, record in tracker.records] == [1.5, 3.5, 5.0]
    assert tracker.records[0][1]["loss"] == pytest.approx(result.metrics["loss"][:2].mean(), rel=1e-6)
    assert all(isinstance(value, float) for _, record in tracker.records for value in record.values())
    assert tracker.rewound == [0]


def test_stacked_keys_run_a_population():
    keys, tracker = jax.random.split(KEY, 3), Recorder()
    many = core.run(core.population(WALK), keys, 4, chunk=2, trackers=[tracker])
    assert many.metrics["loss"].shape == (4, 3)
    assert sorted(tracker.records[0][1]) == ["loss/0", "loss/1", "loss/2", "n/0", "n/1", "n/2"]
    for i in range(3):
        single = core.run(WALK, keys[i], 4, chunk=2)
        np.testing.assert_allclose(many.state["x"][i], single.state["x"], rtol=1e-6)
        np.testing.assert_allclose(many.metrics["loss"][:, i], single.metrics["loss"], rtol=1e-6)


def test_host_methods_are_stepped_through(tmp_path):
    hosted = core.HostMethod(WALK.init, WALK.step)
    tracker = Recorder()
    result = core.run(hosted, KEY, 5, chunk=2, trackers=[tracker], checkpoints=core.Checkpoints(tmp_path))
    reference = core.run(WALK, KEY, 5, chunk=2)
    np.testing.assert_allclose(result.state["x"], reference.state["x"], rtol=1e-6)
    np.testing.assert_allclose(result.metrics["loss"], reference.metrics["loss"], rtol=1e-6)
    assert [step for step, _ in tracker.records] == [2, 4, 5]
    again = core.run(hosted, KEY, 7, chunk=2, checkpoints=core.Checkpoints(tmp_path), resume=True)
    assert len(again.metrics["loss"]) == 2
    np.testing.assert_allclose(again.state["x"], core.run(WALK, KEY, 7).state["x"], rtol=1e-6)


@pytest.mark.parametrize(("steps", "chunk"), [(0, None), (-1, None), (5, 0), (5, -2)])
def test_fewer_than_one_step_is_refused(steps, chunk):
    with pytest.raises(core.InputError, match="must be at least 1, got"):
        core.run(WALK, KEY, steps, chunk=chunk)


def test_progress_bar(capsys):
    result = core.run(WALK, KEY, 4, chunk=2, progress="walking", rows_per_step=3, unit="images")
    assert result.steps == 4
    assert "walking" in capsys.readouterr().out


def test_an_exception_between_chunks_then_resumption_gives_the_same_bits(tmp_path):
    whole = core.run(WALK, KEY, 10, chunk=4, trackers=[core.JsonLines(tmp_path / "whole.jsonl")])
    metrics = core.JsonLines(tmp_path / "resumed.jsonl")
    checkpoints = core.Checkpoints(tmp_path / "states", config="c")

    def crash(done, state, metrics):
        if done == 8:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        core.run(WALK, KEY, 10, chunk=4, checkpoints=checkpoints, callback=crash, trackers=[metrics])
    assert checkpoints.latest == 4
    tracker = Recorder()
    resumed = core.run(WALK, KEY, 10, chunk=4, checkpoints=checkpoints, resume=True, trackers=[metrics, tracker])
    assert_same_bits(resumed.state, whole.state)
    np.testing.assert_array_equal(resumed.metrics["loss"], whole.metrics["loss"][4:])
    assert resumed.steps == 10
    assert tracker.rewound == [4]
    assert [step for step, _ in tracker.records] == [8, 10]
    assert (tmp_path / "resumed.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_finished_run_resumes_to_itself_and_extends(tmp_path):
    checkpoints = core.Checkpoints(tmp_path)
    first = core.run(WALK, KEY, 6, chunk=4, checkpoints=checkpoints)
    kept = jax.tree.map(jnp.copy, first.state)
    again = core.run(WALK, KEY, 6, chunk=4, checkpoints=checkpoints, resume=True)
    assert again.metrics == {}
    assert_same_bits(again.state, kept)
    longer = core.run(WALK, KEY, 10, chunk=4, checkpoints=checkpoints, resume=True)
    np.testing.assert_allclose(longer.state["x"], core.run(WALK, KEY, 10, chunk=4).state["x"], rtol=1e-6)


def test_without_resume_a_run_starts_afresh(tmp_path):
    checkpoints = core.Checkpoints(tmp_path)
    core.run(WALK, KEY, 4, chunk=4, checkpoints=checkpoints)
    result = core.run(WALK, KEY, 4, chunk=4, checkpoints=checkpoints)
    assert len(result.metrics["loss"]) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_has_the_same_bits(tmp_path, number):
    whole = core.run(WALK, KEY, 10, chunk=2)
    checkpoints = core.Checkpoints(tmp_path)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def send(done, state, metrics):
        if done == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(
        core.Interrupted, match=r"stopped after step 4 of 10; the state is saved in .*--resume"
    ) as caught:
        core.run(WALK, KEY, 10, chunk=2, checkpoints=checkpoints, every=1000, callback=send)
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert checkpoints.latest == 4
    resumed = core.run(WALK, KEY, 10, chunk=2, checkpoints=checkpoints, resume=True)
    assert_same_bits(resumed.state, whole.state)


def test_a_signal_without_checkpoints_says_that_nothing_is_saved():
    send = lambda done, state, metrics: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(core.Interrupted, match="the state is not saved"):
        core.run(WALK, KEY, 10, chunk=2, callback=send)


def test_a_signal_in_the_last_chunk_is_not_swallowed(tmp_path):
    checkpoints = core.Checkpoints(tmp_path)
    send = lambda done, state, metrics: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(core.Interrupted, match="stopped after step 2 of 2; the state is saved"):
        core.run(WALK, KEY, 2, chunk=2, checkpoints=checkpoints, callback=send)
    resumed = core.run(WALK, KEY, 2, chunk=2, checkpoints=checkpoints, resume=True)
    assert_same_bits(resumed.state, core.run(WALK, KEY, 2, chunk=2).state)


def test_a_second_signal_interrupts_at_once():
    reached = []

    def send(done, state, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(done)

    with pytest.raises(KeyboardInterrupt) as caught:
        core.run(WALK, KEY, 10, chunk=2, callback=send)
    assert not isinstance(caught.value, core.Interrupted)
    assert reached == []


SCRIPT = """
import os, signal, sys
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", int(os.environ.get("DFKE_TEST_DEVICES", "4")))
from dfke_jax import core
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser, training
from jax.tree_util import Partial

def task():
    images = jax.random.uniform(jax.random.key(1), (20, 5, 5, 1))
    network = Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(0), (5, 5, 1))
    labels = jnp.arange(20) % 3
    return training(network, images, labels, loss=Partial(cross_entropy),
    optimizer=optimiser("adam", 0.01), batch_size=6)

def go(directory, callback=None):
    checkpoints = core.Checkpoints(directory, config="killed")
    return core.run(task(), jax.random.key(3), 10, chunk=2, checkpoints=checkpoints, resume=True,
    callback=callback)

if __name__ == "__main__":
    def killed(done, state, metrics):
        if done == 6:
            os.kill(os.getpid(), signal.SIGKILL)
    go(sys.argv[1], killed)
"""


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(dfke_jax.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "killed")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = core.Checkpoints(tmp_path / "killed", config="killed")
    assert left.latest == 4
    (tmp_path / "killed" / "6.orbax-checkpoint-tmp-1").mkdir()  # what a kill in the middle of writing leaves
    assert left.latest == 4

    go = runpy.run_path(str(script))["go"]
    resumed, whole = go(tmp_path / "killed"), go(tmp_path / "whole")
    assert len(resumed.metrics["loss"]) == 6
    assert len(whole.metrics["loss"]) == 10
    assert_same_bits(resumed.state, whole.state)
    np.testing.assert_array_equal(resumed.metrics["loss"], whole.metrics["loss"][4:])


def test_importing_is_light():
    code = (
        "import json, sys\n"
        "import dfke_jax.core, dfke_jax.nn, dfke_jax.synthesis, dfke_jax.distillation\n"
        "heavy = ('tensorflow_datasets', 'tensorflow', 'orbax.checkpoint', 'matplotlib', 'torch', 'sklearn')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    root = str(Path(dfke_jax.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(done.stdout) == []
