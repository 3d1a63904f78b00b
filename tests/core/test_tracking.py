"""Metrics on disk survive kills and resumptions; unknown names find their neighbours."""

import json
import sys
import types

import pytest

from dfke_jax import core
from dfke_jax.core.tracking import Prefixed, check_trackers, open_tracker, read


def test_one_line_per_record(tmp_path):
    tracker = core.JsonLines(tmp_path / "deep" / "metrics.jsonl", prefix="student/")
    tracker.log(10, {"loss": 0.5, "accuracy": 0.25})
    tracker.log(20, {"loss": 0.125})
    tracker.close()
    lines = (tmp_path / "deep" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "student/loss": 0.5, "student/accuracy": 0.25},
        {"step": 20, "student/loss": 0.125},
    ]
    assert read(tmp_path / "deep" / "metrics.jsonl") == {
        "student/loss": ([10, 20], [0.5, 0.125]),
        "student/accuracy": ([10], [0.25]),
    }


def test_rewinding_touches_its_own_stage_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    teacher, student = core.JsonLines(path, "teacher/"), core.JsonLines(path, "student/")
    for step in (1, 2, 3):
        teacher.log(step, {"loss": step})
    for step in (1, 2, 3):
        student.log(step, {"loss": 10 * step})
    student.rewind(1)
    assert read(path) == {"teacher/loss": ([1, 2, 3], [1, 2, 3]), "student/loss": ([1], [10])}
    student.rewind(0)
    assert read(path) == {"teacher/loss": ([1, 2, 3], [1, 2, 3])}
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = core.JsonLines(path)
    tracker.log(1, {"loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read(path) == {"loss": ([1], [1.0])}
    tracker.rewind(1)
    tracker.log(2, {"loss": 2.0})
    assert read(path) == {"loss": ([1, 2], [1.0, 2.0])}


def test_rewinding_nothing(tmp_path):
    core.JsonLines(tmp_path / "none.jsonl").rewind(5)
    assert not (tmp_path / "none.jsonl").exists()


def test_values_that_no_curve_can_show_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN, "note": "text", "ok": 3}\n')
    assert read(path) == {"ok": ([1], [3])}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet", r"^unknown network 'lenet'; nearest: lenet5, lenet5_bn"),
        ("zzz", r"^unknown network 'zzz'; known: lenet5, lenet5_bn, resnet18$"),
        ("resnet81", r"^unknown network 'resnet81'; nearest: resnet18"),
        ("LENET5", r"^unknown network 'LENET5'"),
    ],
)
def test_unknown_names_list_the_nearest(name, message):
    with pytest.raises(core.UnknownNameError, match=message) as caught:
        raise core.UnknownNameError("network", name, ["resnet18", "lenet5", "lenet5_bn"])
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, core.DfkeError)


def test_errors_are_of_the_builtin_kinds_too():
    kinds = {
        core.InputError: ValueError,
        core.MissingDataError: FileNotFoundError,
        core.CheckpointError: RuntimeError,
        core.NonFiniteError: FloatingPointError,
        core.Interrupted: KeyboardInterrupt,
    }
    for ours, builtin in kinds.items():
        assert issubclass(ours, core.DfkeError)
        assert issubclass(ours, builtin)


class FakeWriter:
    """Of TensorBoard."""

    def __init__(self, directory):
        self.directory, self.scalars, self.closed = directory, [], False

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


class FakeSession:
    """Of Weights & Biases."""

    def __init__(self, **settings):
        self.settings, self.records, self.finished = settings, [], False

    def log(self, record):
        self.records.append(record)

    def finish(self):
        self.finished = True


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for both libraries."""
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=FakeWriter))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=FakeSession))


def test_scalars_go_to_tensorboard_with_their_step(libraries, tmp_path):
    tracker = open_tracker("tensorboard", tmp_path, "zskd digits", {"seeds": 3})
    assert isinstance(tracker, core.TensorBoard)
    stage = Prefixed(tracker, "seed0/student/")
    stage.log(10, {"loss": 0.5, "accuracy": 0.25})
    stage.close()
    writer = tracker.writer
    assert writer.directory == str(tmp_path / "tensorboard")
    assert writer.scalars == [("seed0/student/loss", 0.5, 10), ("seed0/student/accuracy", 0.25, 10)]
    assert not writer.closed, "a stage's end is not the run's"
    tracker.close()
    assert writer.closed


def test_scalars_go_to_weights_and_biases_with_the_settings(libraries, tmp_path):
    tracker = open_tracker("wandb", tmp_path, "zskd digits", {"seeds": 3})
    assert isinstance(tracker, core.WeightsAndBiases)
    Prefixed(tracker, "seed0/student/").log(10, {"loss": 0.5})
    session = tracker.session
    assert session.settings == {
        "project": "dfke_jax", "name": "zskd digits", "dir": str(tmp_path), "config": {"seeds": 3},
    }  # fmt: skip
    assert session.records == [{"seed0/student/loss": 0.5, "step": 10}]
    tracker.close()
    assert session.finished


def test_trackers_without_their_library_say_what_to_install(monkeypatch):
    for name in ("tensorboardX", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(core.InputError, match="needs `pip install tensorboardX`"):
        check_trackers(["tensorboard"])
    with pytest.raises(core.InputError, match="needs `pip install wandb`"):
        check_trackers(["wandb"])
    with pytest.raises(core.UnknownNameError, match="tensorbored'; nearest: tensorboard"):
        check_trackers(["tensorbored"])


def test_weights_and_biases_that_does_not_begin_is_one_message(monkeypatch, tmp_path):
    def init(**settings):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(core.InputError, match="did not begin: api_key not configured"):
        open_tracker("wandb", tmp_path, "zskd digits", {})
