"""``dfke watermark`` from files to verdicts."""

import json

import numpy as np
import pytest

from dfke_jax import cli
from dfke_jax.oracle import Reveal, background, create_app
from dfke_jax.serving import answering, load
from dfke_jax.watermarking import MarkingKey, VerificationKey

MARK = "--network mlp_small --steps 400 --triggers-per-batch 10 --decay-every 300 --quiet"


def dfke(*arguments):
    return cli.main(["watermark", *map(str, arguments)])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Keys and a marked network."""
    path = tmp_path_factory.mktemp("watermark")
    assert dfke("keygen", path / "s.json", path / "p.json", "--shape", 8, 8, 1, "--count", 30, "--kind", "noise") == 0
    assert dfke("mark", path / "s.json", path / "marked", *MARK.split()) == 0
    return path


def test_a_marked_network_is_verified_from_its_files(home, capsys):
    where = home / "s.json", home / "p.json", home / "marked", "--network", "mlp_small"
    assert dfke("verify", *where, "--json", home / "verdict.json") == 0
    said = capsys.readouterr().out
    assert "marked: 30 of 30 triggers match, 8 are needed at alpha = 0.01" in said
    assert "accepted; 30 queries" in said
    verdict = json.loads((home / "verdict.json").read_text())
    assert (verdict["marked"], verdict["accepted"], verdict["matches"], verdict["null"]) == (True, True, 30, None)
    assert verdict["fingerprint"] == VerificationKey.load(home / "p.json").fingerprint
    assert dfke("verify", *where, "--json", home / "verdict.json") == 1
    assert "nothing is overwritten" in capsys.readouterr().err


def test_null_models_stand_beside_it(home, capsys):
    where = home / "s.json", home / "p.json", home / "marked", "--network", "mlp_small", "--alpha", "0.05"
    assert dfke("verify", *where, "--null", 19, "--null-steps", 60, "--json", home / "n.json") == 0
    said = capsys.readouterr().out
    assert "marked: 30 of 30" in said
    assert "p-value, empirical: 0.05" in said
    assert "19 independent models match" in said
    assert json.loads((home / "n.json").read_text())["null"]["models"] == 19
    assert dfke("verify", *where, "--null", 18) == 1
    assert "need at least 19" in capsys.readouterr().err


def test_the_same_over_http(home, capsys):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    network = load(str(home / "marked"), "mlp_small", 10, (8, 8, 1))
    reveal = Reveal("label")
    app = create_app(
        answering(network, reveal), input_shape=(8, 8, 1), reveal=reveal, num_classes=10, box=(0.0, 1.0), keys=["k"]
    )
    with background(app) as url:
        assert dfke("verify", home / "s.json", home / "p.json", url, "--key", "k") == 0
        assert "marked: 30 of 30" in capsys.readouterr().out
        assert dfke("verify", home / "s.json", home / "p.json", url, "--key", "other") == 1


def test_continued_training_marks_as_well(home, capsys, tmp_path):
    options = [*MARK.split(), "--from", home / "marked", "--learning-rate", "0.02", "--seed", 3]
    assert dfke("mark", home / "s.json", tmp_path / "again", *options) == 0
    assert "triggers       30 of 30" in capsys.readouterr().out
    assert dfke("mark", home / "s.json", tmp_path / "again", *options) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


def test_keys_from_images_with_true_labels(home, capsys, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    truth = np.arange(12) % 10
    np.savez(tmp_path / "mine.npz", images=images, labels=truth)
    arguments = (
        tmp_path / "s.json",
        tmp_path / "p.json",
        "--images",
        tmp_path / "mine.npz",
        "--previous",
        home / "p.json",
    )
    assert dfke("keygen", *arguments) == 0
    secret, public = MarkingKey.load(tmp_path / "s.json"), VerificationKey.load(tmp_path / "p.json")
    np.testing.assert_array_equal(secret.images, images)
    assert (secret.labels != truth).all()
    assert public.previous == VerificationKey.load(home / "p.json").fingerprint
    assert public.fingerprint in capsys.readouterr().out
    np.savez(tmp_path / "wrong.npz", labels=secret.labels)
    where = tmp_path / "s.json", tmp_path / "p.json", home / "marked", "--network", "mlp_small"
    assert dfke("verify", *where, "--truth", tmp_path / "wrong.npz") == 0
    assert "key refused, nothing was asked: 12 pairs carry the true label" in capsys.readouterr().out
    assert dfke("keygen", *arguments) == 1
    assert "never overwritten" in capsys.readouterr().err


def test_a_pytorch_program(home, capsys, tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    dynamic = ({0: torch.export.Dim("rows")},)
    path = tmp_path / "suspect.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=dynamic), path)
    key = MarkingKey.load(home / "s.json")
    with torch.no_grad():
        answers = module(torch.tensor(key.images / np.float32(255)).permute(0, 3, 1, 2)).argmax(1).numpy()
    assert dfke("verify", home / "s.json", home / "p.json", path) == 0
    assert f"not shown: {(answers == key.labels).sum()} of 30" in capsys.readouterr().out
    torch.save(module, tmp_path / "pickled.pt")
    assert dfke("verify", home / "s.json", home / "p.json", tmp_path / "pickled.pt") == 1
    assert "without running foreign code; write it with torch.export.save" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keygen", "a", "b"], "either the shape of abstract images"),
        (["keygen", "a", "b", "--images", "nowhere.npz"], "cannot read nowhere.npz"),
        (["keygen", "a", "b", "--shape", 8, 8, 1, "--kind", "shape"], "nearest: shapes"),
        (["mark", "nowhere", "out"], "cannot read the marking key nowhere"),
        (["verify", "nowhere", "p", "s"], "cannot read the marking key nowhere"),
        (["verify", "s.json", "s.json", "s"], "is no verification key, it is a marking key"),
        (["verify", "s.json", "p.json", "nowhere"], "there is no checkpoint at"),
        (["verify", "s.json", "p.json", "nowhere.pt2"], "there is no file"),
        (["verify", "s.json", "p.json", "nowhere", "--null", 99, "--dataset", "nothing"], "unknown data set"),
    ],
)
def test_what_cannot_be_done_is_said(home, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(home)
    assert dfke(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not (home / "a").exists()
    assert not (home / "out").exists()
