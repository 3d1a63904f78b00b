"""``dfke serve`` from the command to the answers."""

import contextlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from dfke_jax import cli, data
from dfke_jax.commands import serving
from dfke_jax.core.errors import InputError
from dfke_jax.models import open_model
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.named import network
from dfke_jax.nn.registry import build
from dfke_jax.oracle import Reveal
from dfke_jax.oracle.answering import answering
from dfke_jax.oracle.journal import Journal
from dfke_jax.oracle.remote import RemoteVictim


@pytest.mark.parametrize("count", [1, 3, 8, 21])
@pytest.mark.parametrize("reveal", [Reveal("logits", decimals=2), Reveal("top_k", k=2), Reveal("label")])
def test_it_answers_what_is_revealed(getkey, count, reveal):
    classifier = network("mlp_small", 10, (8, 8, 1))
    rows = np.asarray(jax.random.uniform(getkey(), (count, 8, 8, 1)))
    answers, wanted = answering(classifier, reveal)(rows), reveal.of_logits(classifier(rows))
    assert answers.shape == wanted.shape
    np.testing.assert_allclose(answers, wanted, atol=1e-6)


def test_a_saved_classifier_is_served_as_it_was_trained(tmp_path, getkey):
    """Its preprocessing is no guess: a network that normalises is served normalising."""
    preprocessing = Preprocessing((32, 32), "bilinear", mean=(0.3,), std=(0.2,))
    classifier = Classifier.create(build("lenet5_half", 5), getkey(), (28, 28, 1), preprocessing)
    classifier.save(tmp_path / "saved")
    rows = np.asarray(jax.random.uniform(getkey(), (2, 28, 28, 1)))
    with open_model(tmp_path / "saved") as model:
        answers = answering(model.victim, Reveal(), model.gives)(rows)
    np.testing.assert_allclose(answers, jax.nn.softmax(classifier.predict(rows)), atol=1e-6)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tmp_path):
    (tmp_path / "keys").write_text("k1\nk2\n")
    command = [sys.executable, "-m", "dfke_jax.cli", "serve", "digits", "--quota", "400", "--explain"]
    command[-1:-1] = ["--journal", str(tmp_path / "journal")]
    process = subprocess.Popen(
        [*command, "gradient:classes=top", "--explain-quota", "5", "--key-file", str(tmp_path / "keys"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith(
            "serving digits (probabilities, explained by gradient) until interrupted at http://127.0.0.1:"
        )
        test = data.load("digits").test
        with RemoteVictim(line.split()[-1], key="k2", batch=100) as victim:
            assert (victim.input_shape, victim.num_classes, victim.reveal) == ((8, 8, 1), 10, Reveal())
            assert np.mean(victim(test.images).argmax(1) == test.labels) > 0.93
        with RemoteVictim(line.split()[-1], key="k2", explain=True) as victim:
            assert victim(test.images[:3]).explanation.shape == (3, 8, 8, 1)
            used = {"rows": 363, "requests": 5, "quota": 400, "explanation_rows": 3, "explanation_quota": 5}
            assert victim.usage() == used
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        _, said = process.communicate()
    assert said == ""
    with contextlib.closing(Journal(tmp_path / "journal")) as journal:
        assert journal.charges() == {"key 1": (363, 5, 3)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no model at nowhere"),
        (["digits", "--reveal", "labels"], "nearest: label"),
        (["digits", "--reveal", "top_k"], "k >= 1"),
        (["digits", "--reveal", "label", "--explain", "gradient"], "--explain explains probabilities"),
        (["digits", "--explain", "gradients"], "nearest: gradient"),
        (["digits", "--network", "lenet"], "unknown network 'lenet'"),
        (["digits", "--classes", "9"], "has classes 10, and 9 is declared"),
        (["digits", "--declare", "shape=8,8"], "and (8, 8) is declared"),
        (["digits", "--declare", "shape=a"], "shape must be numbers with commas"),
        (["digits", "--declare", "shade=8,8,1"], "nearest: shape"),
        (["http://127.0.0.1:9"], "is served already"),
        (["digits", "--journal", "no/such/folder"], "cannot open the journal no/such/folder"),
        (["digits", "--key-file", "nowhere"], "cannot read API keys from nowhere"),
    ],
)
def test_what_cannot_be_served_is_said(capsys, arguments, said):
    assert cli.main(["serve", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_keys_come_from_a_file_or_a_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(serving.KEYS, raising=False)
    assert serving.keys(None) is None
    monkeypatch.setenv(serving.KEYS, "one\ntwo")
    assert serving.keys(None) == ["one", "two"]
    (tmp_path / "keys").write_text("\n a key \n\nzwei-ü\n", encoding="utf-8")
    assert serving.keys(tmp_path / "keys") == ["a key", "zwei-ü"]
    for text in ("", " \n"):
        monkeypatch.setenv(serving.KEYS, text)
        (tmp_path / "keys").write_text(text)
        for source in (None, tmp_path / "keys"):
            with pytest.raises(InputError, match="no API key in"):
                serving.keys(source)
    (tmp_path / "keys").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot read API keys"):
        serving.keys(tmp_path / "keys")


def test_no_key_stands_on_the_command_line(capsys):
    """Everybody on a machine sees the arguments of its processes."""
    assert cli.main(["serve", "digits", "--key", "secret"]) == 2
    assert "--key-file" in serve_help(capsys)


def serve_help(capsys):
    capsys.readouterr()
    assert cli.main(["serve", "--help"]) == 0
    return capsys.readouterr().out
