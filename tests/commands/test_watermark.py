"""``dfke watermark`` from files to verdicts."""

import dataclasses
import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from dfke_jax import cli
from dfke_jax.models import load
from dfke_jax.oracle import Reveal, background, create_app
from dfke_jax.oracle.answering import answering
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
    where = home / "s.json", home / "p.json", home / "marked", "--null", 0
    assert dfke("verify", *where, "--json", home / "verdict.json") == 0
    said = capsys.readouterr().out
    assert "marked: 30 of 30 triggers match, 8 are needed at alpha = 0.01" in said
    assert "accepted; 30 queries" in said
    assert "assumes: triggers are not adversarial" in said
    assert "no published fingerprint was given" in said
    verdict = json.loads((home / "verdict.json").read_text())
    assert (verdict["marked"], verdict["accepted"], verdict["matches"], verdict["null"]) == (True, True, 30, None)
    assert verdict["fingerprint"] == VerificationKey.load(home / "p.json").fingerprint
    assert dfke("verify", *where, "--json", home / "verdict.json") == 1
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_null_models_stand_beside_it(home, capsys):
    """By default, as many as the level takes; and they have to be models."""
    where = home / "s.json", home / "p.json", home / "marked", "--alpha", "0.05"
    assert dfke("verify", *where, "--null-steps", 150, "--task-rows", 200, "--json", home / "n.json") == 0
    said = capsys.readouterr().out
    assert "marked: 30 of 30" in said
    assert "p-value, empirical: 0.05" in said
    assert "19 independent models match" in said
    assert "accuracy on 200 images of the task: suspect 9" in said
    assert "accepted; 230 queries" in said
    assert "adversarial; or else the null models answer the triggers as an innocent suspect would" in said
    null = json.loads((home / "n.json").read_text())["null"]
    assert (null["models"], null["images"]) == (19, 200)
    assert 0.85 < null["lowest"] <= null["accuracy"] < 1
    assert dfke("verify", *where, "--null", 18) == 1
    assert "need at least 19" in capsys.readouterr().err
    assert dfke("verify", *where, "--null-steps", 5) == 1
    assert "the null models are none for this suspect" in capsys.readouterr().err


def test_a_published_fingerprint_binds_date_owner_and_predecessor(home, capsys, tmp_path):
    new = "--shape", 8, 8, 1, "--count", 20, "--kind", "noise", "--owner", "Ada & Co."
    assert dfke("keygen", tmp_path / "s.json", tmp_path / "p.json", *new, "--previous", home / "p.json") == 0
    public = VerificationKey.load(tmp_path / "p.json")
    where = tmp_path / "s.json", home / "marked", "--null", 0
    for change in ({}, {"created": "2001-01-01T00:00:00+00:00"}, {"previous": None}, {"owner": "Bob"}):
        path = tmp_path / f"p{len(list(tmp_path.iterdir()))}.json"
        dataclasses.replace(public, **change).save(path)
        code = dfke("verify", where[0], path, *where[1:], "--fingerprint", public.fingerprint)
        out, err = capsys.readouterr()
        assert code == (1 if change else 3), "the network knows other triggers"
        if change:
            assert "not the published one; its date, owner, predecessor" in err
        else:
            assert "of Ada & Co., published" in out
            assert "assumes: this fingerprint was published before the suspect was" in out


def test_a_beacon_draws_the_labels_of_earlier_keys(home, capsys, tmp_path):
    beacon = "17" * 32
    names = home / "s.json", home / "p.json"
    made = tmp_path / "s.json", tmp_path / "p.json"
    assert dfke("keygen", *made, "--labels-of", *names, "--beacon", beacon) == 0
    first, public = VerificationKey.load(names[1]), VerificationKey.load(made[1])
    assert (public.previous, public.beacon) == (first.fingerprint, beacon)
    assert f"images' root {first.image_root.hex()}" in capsys.readouterr().out
    assert dfke("verify", *made, home / "marked", "--null", 0) == 3
    said = capsys.readouterr().out
    assert "not shown" in said, "the network knows other labels"
    assert f"(root {first.image_root.hex()}) were public before the beacon {beacon[:16]}… was" in said
    assert "adversarial" not in said
    other = tmp_path / "o.json", tmp_path / "q.json"
    for options, message in (
        (("--labels-of", *names), "belong together"),
        (("--labels-of", *names, "--beacon", "no"), "takes bytes in hexadecimal"),
        (("--labels-of", *names, "--beacon", "00"), "16 to 1024 bytes"),
        (("--labels-of", *names, "--beacon", beacon, "--owner", "me"), "--owner cannot be given"),
    ):
        assert dfke("keygen", *other, *options) == 1
        assert message in capsys.readouterr().err
        assert not other[0].exists()


def test_a_secret_is_not_left_behind_alone(capsys, tmp_path):
    new = "--shape", 8, 8, 1, "--count", 3
    assert dfke("keygen", tmp_path / "s.json", tmp_path / "no" / "p.json", *new) == 1
    assert "cannot write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_archives_are_measured_before_they_are_read(home, capsys, tmp_path):
    """A few hundred kilobytes of zeros; a header that promises more than there is; other members and objects."""
    bomb, liar, other, objects = (tmp_path / f"{name}.npz" for name in ("bomb", "liar", "other", "objects"))
    for path, shape, zeros in ((bomb, (2**19, 32, 32, 1), 2**29), (liar, (200_000, 32, 32, 1), 100)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(0, zeros, 2**24):
                file.write(bytes(min(zeros, 2**24)))
    assert bomb.stat().st_size < 2**20
    np.savez(other, **{"x[2J": np.zeros(3)})
    np.savez(objects, images=np.array([object()]))
    tracemalloc.start()
    for path, message in (
        (bomb, "has 536,870,912 bytes; at most"),
        (liar, "cut off, or longer than it says"),
        (other, "none named images"),
        (objects, "no array of numbers"),
        (home / "p.json", "as an .npz file"),
    ):
        assert dfke("keygen", tmp_path / "s.json", tmp_path / "p.json", "--images", path) == 1
        said = capsys.readouterr().err
        assert message in said
        assert "" not in said
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_the_same_over_http(home, capsys):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    network = load(home / "marked", network="mlp_small")
    reveal = Reveal("label")
    app = create_app(
        answering(network, reveal), input_shape=(8, 8, 1), reveal=reveal, num_classes=10, box=(0.0, 1.0), keys=["k"]
    )
    with background(app) as url:
        assert dfke("verify", home / "s.json", home / "p.json", url, "--key", "k", "--null", 0) == 0
        assert "marked: 30 of 30" in capsys.readouterr().out
        assert dfke("verify", home / "s.json", home / "p.json", url, "--key", "other", "--null", 0) == 1


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
    where = tmp_path / "s.json", tmp_path / "p.json", home / "marked", "--null", 0
    assert dfke("verify", *where, "--truth", tmp_path / "wrong.npz") == 4
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
    assert dfke("verify", home / "s.json", home / "p.json", path, "--null", 0) == 3
    assert f"not shown: {(answers == key.labels).sum()} of 30" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keygen", "a", "b"], "either the shape of abstract images"),
        (["keygen", "a", "b", "--images", "nowhere.npz"], "cannot read nowhere.npz"),
        (["keygen", "a", "b", "--shape", 8, 8, 1, "--kind", "shape"], "nearest: shapes"),
        (["mark", "nowhere", "out"], "cannot read the marking key nowhere"),
        (["verify", "nowhere", "p", "s"], "cannot read the marking key nowhere"),
        (["verify", "s.json", "s.json", "s"], "is no verification key, it is a marking key"),
        (["verify", "s.json", "p.json", "nowhere"], "there is no model at nowhere"),
        (["verify", "s.json", "p.json", "nowhere.pt2"], "there is no file"),
        (["verify", "s.json", "p.json", "marked", "--dataset", "nothing"], "unknown data set"),
        (
            ["verify", "s.json", "p.json", "marked", "--declare", "classes=9"],
            "classes is declared to be 9, and must be 10",
        ),
        (["verify", "s.json", "p.json", "marked", "--null", -1], "'-1' is not a whole"),
        (["verify", "s.json", "p.json", "marked", "--alpha", 0], "'0' is not a finite number"),
        (["keygen", "a", "b", "--shape", 8, 8, 1, "--classes", 2**70], "fewer than 2³¹"),
        (["keygen", "a", "b", "--shape", 8, 8, 1, "--kind", "noise", "--owner", "a\x1b[2J"], "one printable line"),
    ],
)
def test_what_cannot_be_done_is_said(home, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(home)
    assert dfke(*arguments) == (2 if "is not a" in message else 1)
    assert message in capsys.readouterr().err
    assert not (home / "a").exists()
    assert not (home / "out").exists()
