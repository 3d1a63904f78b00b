"""``dfke dataset-inference`` from the command to the file that it leaves."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import cli, core
from dfke_jax.commands import dataset_inference
from dfke_jax.core.errors import InputError, MissingDataError
from dfke_jax.distillation import cross_entropy_training
from dfke_jax.models import load
from dfke_jax.nn.named import network
from dfke_jax.nn.training import trained
from dfke_jax.oracle import Reveal
from dfke_jax.oracle.answering import answering
from dfke_jax.oracle.serve import background, create_app

SHAPE = (3, 4, 1)
WALK = ["--starts", "2", "--max-steps", "20"]


def draw(rng, count):
    """Three classes that overlap, in 12 pixels."""
    labels = np.arange(count) % 3
    centres = np.random.default_rng(0).normal(size=(3, 12))
    images = np.clip(0.5 + 0.06 * centres[labels] + 0.1 * rng.normal(size=(count, 12)), 0, 1)
    return images.astype(np.float32).reshape(count, *SHAPE), labels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A directory with a victim that remembers its 60 private images, and the images."""
    place, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(1)
    for name, count in (("private", 60), ("public", 60), ("others", 200)):
        images, labels = draw(rng, count)
        np.savez(place / f"{name}.npz", images=images, labels=labels)
    with np.load(place / "private.npz") as private:
        images, labels = jnp.asarray(private["images"]), jnp.asarray(private["labels"])
    net = network("mlp_small", 3, SHAPE)
    method = cross_entropy_training(net, images, labels, steps=400, batch_size=32)
    trained(net, core.run(method, jax.random.key(0), 400, chunk=400).state).save(place / "victim")
    return place


@pytest.fixture(scope="module")
def endpoint(files):
    """The victim behind HTTP, which says labels."""
    victim = load(files / "victim")
    reveal = Reveal("label")
    with background(create_app(answering(victim, reveal), input_shape=SHAPE, reveal=reveal, num_classes=3)) as url:
        yield url


def command(files, out, *more, suspect="victim"):
    suspect = suspect if "://" in suspect else str(files / suspect)
    given = [f"--{name}={files / name}.npz" for name in ("private", "public")]
    return [
        "dataset-inference",
        "--victim",
        str(files / "victim"),
        "--suspect",
        suspect,
        *given,
        "--out",
        str(out),
        *WALK,
        *more,
    ]


def test_a_copy_in_a_file_with_independent_models(files, tmp_path, capsys):
    out = tmp_path / "v.json"
    more = ["--others", str(files / "others.npz"), "--references", "1", "--training-steps", "60"]
    code = cli.main(command(files, out, *more))
    said = " ".join(capsys.readouterr().out.split())
    content = json.loads(out.read_text(), parse_constant=pytest.fail)
    verdict = content["verdict"]
    assert code == (0 if verdict["stolen"] else 3)
    assert verdict["decided_by"] == "conformal"
    assert verdict["p_values"]["welch"] == verdict["control"]  # the suspect is the victim
    assert verdict["accuracy"]["victim"] == verdict["accuracy"]["suspect"]
    assert content["independents"] == 21
    assert content["files"]["private"]["sha256"] == hashlib.sha256((files / "private.npz").read_bytes()).hexdigest()
    assert content["settings"]["walk"]["noise"] in dataset_inference.NOISES
    assert verdict["never"] < 0.6
    assert any("any two of them share 30% of their images" in note for note in verdict["notes"])
    for name in verdict:
        assert name.replace("_", " ") in said, name
    assert f"{verdict['p_value']:.3g}" in said
    assert cli.main(command(files, out)) == 1
    assert "exists and nothing is overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_an_endpoint_pays_once_and_keeps_to_its_budget(files, endpoint, tmp_path, capsys):
    given = lambda name, *more: command(
        files, tmp_path / name, "--ledger", str(tmp_path / "ledger.sqlite"), "--noise", "4", *more, suspect=endpoint
    )
    assert cli.main(given("a.json", "--budget", "200")) == 1
    assert "of a budget of 200 spent" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a.json").exists()
    codes = [cli.main(given("a.json")), cli.main(given("b.json"))]
    assert "rows asked" in capsys.readouterr().out
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["verdict"] == second["verdict"]
    assert codes == 2 * [0 if first["verdict"]["stolen"] else 3]
    assert first["verdict"]["queries"] == first["verdict"]["rows_sent"]
    assert first["ledger"]["rows"] == second["ledger"]["rows"] <= first["verdict"]["rows_sent"]
    local, _ = dataset_inference.judge_files(
        cli._parser().parse_args(command(files, tmp_path / "c.json", "--noise", "4"))
    )
    assert first["verdict"]["p_values"]["welch"] == pytest.approx(local.p_values["welch"], rel=1e-3)
    assert first["verdict"]["queries"] == pytest.approx(local.queries, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suspect", "nowhere"], "there is no model at nowhere"),
        (["--public", "nowhere.npz"], "there is no file nowhere.npz"),
        (["--budget", "5"], "belong to a suspect behind an address"),
        (["--embedding", "mindg"], "nearest: mingd"),
        (["--declare-victim", "network=mlp_smal"], "has network mlp_small, and mlp_smal is declared"),
        (["--alpha", "2"], "'2' is not a finite number above 0 and below 1"),
        (["--classes", "2"], "has classes 3, and 2 is declared"),
        (["--revealed", "40"], "30 to test with; at least 10 and 40"),
        (["--independent", "{victim}"], "1 independent models cannot give a p-value below 0.05"),
        (["--public", "{private}"], "60 public images are private ones too"),
        (["--others", "{public}"], "60 images of --others are public ones too"),
        (["--others", "{few}"], "any two would share 100% of their images; at least 120 are needed"),
        (["--others", "{copies}"], "and 40 are left for them"),
        (["--others", "{few}", "--looks", "2"], "21 independent models cannot give a p-value below 0.025: at least 40"),
        (["--looks", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_judged_is_said(files, tmp_path, capsys, arguments, message):
    places = {name: files / f"{name}.npz" for name in ("private", "public")} | {"victim": files / "victim"}
    images, labels = draw(np.random.default_rng(2), 40)
    for name, copies in (("few", 1), ("copies", 5)):
        places[name] = tmp_path / f"{name}.npz"
        np.savez(places[name], images=np.tile(images, (copies, 1, 1, 1)), labels=np.tile(labels, copies))
    arguments = [argument.format(**places) for argument in arguments]
    usage = message.startswith("'")  # what the options' own types refuse
    assert cli.main(command(files, tmp_path / "v.json", "--noise", "4", *arguments)) == (2 if usage else 1)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "v.json").exists()


def test_samples_are_read_by_either_names(tmp_path):
    images, labels = np.zeros((4, 3, 4), np.uint8), np.arange(4)
    np.savez(tmp_path / "a.npz", x=images, y=labels)
    found = dataset_inference.read_samples(tmp_path / "a.npz")
    assert found[0].shape == (4, *SHAPE)
    np.testing.assert_array_equal(found[1], labels)
    np.savez(tmp_path / "b.npz", x=images)
    with pytest.raises(InputError, match=r"has x and no y: labels are needed here"):
        dataset_inference.read_samples(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=images + 2.5, y=labels)
    with pytest.raises(InputError, match=r"c.npz: images must lie in"):
        dataset_inference.read_samples(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_text("no archive")
    with pytest.raises(InputError, match="cannot be read as an"):
        dataset_inference.read_samples(tmp_path / "d.npz")
    with pytest.raises(MissingDataError, match="there is no file"):
        dataset_inference.read_samples(tmp_path / "e.npz")
