"""Wrong inputs to every command: one clear line, the right exit code, and nothing written."""

import json

import numpy as np
import pytest

from dfke_jax import cli
from dfke_jax.commands.common import FAILED, USAGE

RUN = {
    "dafl": [
        "--seeds 0", "--seeds x", "--seeds -1", "--seeds 1.5", "--seeds", "--seed x", "--nope 1", "nope",
        "--teacher nope", "--teacher-steps 0", "--teacher-steps -5", "--teacher-steps many", "--teacher-batch 0",
        "--teacher-learning-rate 0", "--teacher-learning-rate -1", "--teacher-learning-rate nan",
        "--teacher-learning-rate x", "--fit stretch", "--precision float8", "--teacher-augmentation blur",
        "--student nope", "--distillation-steps 0", "--distillation-batch 0", "--distillation-learning-rate nan",
        "--distillation-learning-rate -2", "--temperature 0", "--temperature -1", "--temperature nan",
        "--real-augmentation blur", "--iterations 0", "--iterations -3", "--method.batch-size 0",
        "--method.latent 0", "--method.width 0", "--method.student-rate 0", "--method.student-rate nan",
        "--method.generator-rate -1", "--method.generator-rate nan", "--method.momentum 1", "--method.momentum -1",
        "--method.weight-decay -1", "--method.clip -1", "--method.schedule never", "--method.student-optimizer nope",
        "--method.generator-optimizer nope", "--method.output nope", "--method.one-hot -1", "--method.entropy nan",
        "--method.drops 2", "--method.drops 0.5 0.2", "--devices x", "--resume maybe",
    ],
    "data-impressions": [
        "--samples 0", "--samples 7 --synthesis-batch 3", "--synthesis-batch 0", "--augmentation blur", "--samples x",
        "--baselines maybe", "--temperature inf.0",
    ],
    "dfme": [
        "--budgets 0", "--budgets -5", "--budgets x", "--budgets 20000 10000", "--budgets 10000 10000", "--points -1",
        "--attack.batch-size 0", "--attack.directions 0", "--attack.epsilon 0", "--attack.epsilon -1",
        "--attack.epsilon nan", "--attack.clone-batches 0", "--attack.chunk 0", "--attack.replay-batches -1",
        "--transfer-epsilon nan", "--attack.clone-rate nan", "--attack.nope 1",
    ],
    "api-theft": ["--budget 0", "--budget x", "--price -1", "--learning-steps 0", "--teacher lenet5", "--track mlflow"],
    "knockoff": ["--attack.budget x", "--reveal nothing", "--decimals -1", "--budgets 0", "--attack.nope 3"],
    "watermark-schemes": ["--schemes nope", "--independents -1", "--seeds 0", "--copies x"],
    "dataset-inference": ["--seeds 0", "--nope"],
}  # fmt: skip
"""Recipe -> options; none of these loads data or trains anything."""

FILES = {
    "text.npz": b"no archive",
    "empty.npz": b"",
    "text.pt2": b"no program",
    "key.json": b"{}",
    "list.json": b"[1, 2]",
    "cut.json": b'{"a": ',
    "empty.csv": b"",
    "names.csv": b"a,b\n",
    "ragged.csv": b"a,y\n1,0\n2\n",
    "gap.csv": b"a,y\n1,0\n,1\n",
    "words.csv": b"a,y\n1,x\n2,x\n3,y\n",
    "twice.csv": b"a,a\n1,0\n2,1\n",
    "alone.csv": b"y\n0\n1\n0\n1\n",
    "people.csv": b"age,job,buys\n30,cook,yes\n40,clerk,no\n50,cook,yes\n60,clerk,no\n",
    "wages.csv": b"age,wage\n30,1.5\n40,2.5\n50,3.5\n",
    "pixels.csv": b"y,pixel0,pixel1,pixel2\n0,1,2,3\n1,4,5,6\n0,1,2,3\n1,4,5,6\n",
    "bright.csv": b"y,pixel0\n0,256\n1,4\n0,1\n1,9\n",
    "none.toml": b"model = 3\n",
    "cut.toml": b"model = ",
    "net.pkl": b"no pickle",
    "text.onnx": b"no graph",
    "broken.py": b"1/0\n",
    "mine.py": b"""
import numpy as np

def scores(rows):
    return np.asarray(rows).reshape(len(rows), -1)[:, :10] - 0.5

def holes(rows):
    return scores(rows) * np.nan

def one(rows):
    return scores(rows)[:, 0]

def short(rows):
    return scores(rows)[:1]

def sigmoids(rows):
    return scores(rows) * 0.5 + 0.5

def fails(rows):
    raise KeyError("nothing")

def needs(rows, more):
    return rows

class Net:
    def __init__(self, width):
        pass

NUMBER = 3
""",
}

COMMANDS = [
    # what is no command at all
    ("", USAGE), ("nope", USAGE), ("--nope", USAGE), ("run", USAGE), ("run --seeds 3", USAGE), ("run nope", USAGE),
    ("run dfm", USAGE), ("list --nope", USAGE), ("list nope", USAGE), ("doctor nope", USAGE), ("doctor --data-dir", USAGE),
    # report
    ("report", USAGE), ("report nowhere", FAILED), ("report text.npz", FAILED), ("report a b", USAGE),
    ("report empty", FAILED),
    # reproduce
    ("reproduce nope", FAILED), ("reproduce --jobs 0", USAGE), ("reproduce --jobs x", USAGE), ("reproduce --jobs -1", USAGE),
    ("reproduce --seed x", USAGE), ("reproduce --seed -1", USAGE), ("reproduce --seed 0", FAILED),
    ("reproduce --devices 0", USAGE), ("reproduce --page dfme-mnist", FAILED), ("reproduce --page --jobs 2", FAILED),
    ("reproduce dfme-mnist dafl-mnist --seed 0", FAILED), ("reproduce dfme-mnist --seed 0 --jobs 2", FAILED),
    # serve
    ("serve", USAGE), ("serve nowhere", FAILED), ("serve text.npz", FAILED), ("serve empty", FAILED),
    ("serve digits --network nope", FAILED), ("serve digits --classes 0", USAGE), ("serve digits --classes x", USAGE),
    ("serve nowhere --shape 8 8", USAGE), ("serve nowhere --shape 8 -8 1", USAGE), ("serve nowhere --shape 0 8 1", USAGE),
    ("serve nowhere --shape a b c", USAGE), ("serve digits --reveal nothing", FAILED), ("serve digits --reveal top_k", FAILED),
    ("serve digits --reveal top_k --top 0", USAGE), ("serve digits --reveal top_k --top x", USAGE),
    ("serve digits --top 3", FAILED), ("serve digits --round -1", USAGE), ("serve digits --round x", USAGE),
    ("serve digits --reveal label --round 2", FAILED), ("serve digits --explain nothing", FAILED),
    ("serve digits --explain gradient:nope=1", FAILED), ("serve digits --reveal label --explain gradient", FAILED),
    ("serve digits --explain-quota -1", USAGE), ("serve digits --rate 0", USAGE), ("serve digits --rate -3", USAGE),
    ("serve digits --rate nan", USAGE), ("serve digits --rate inf", USAGE), ("serve digits --quota -1", USAGE),
    ("serve digits --quota x", USAGE), ("serve digits --key-file nowhere", FAILED), ("serve digits --key-file none.txt", FAILED),
    ("serve digits --max-rows 0", USAGE), ("serve digits --port -1", USAGE), ("serve digits --port 70000", USAGE),
    ("serve digits --port x", USAGE), ("serve digits --nope", USAGE), ("serve digits --journal", USAGE),
    # watermark
    ("watermark", USAGE), ("watermark nope", USAGE), ("watermark keygen", USAGE), ("watermark keygen s", USAGE),
    ("watermark keygen key.json p --shape 8 8 1", FAILED), ("watermark keygen s key.json --shape 8 8 1", FAILED),
    ("watermark keygen s p", FAILED), ("watermark keygen s p --shape 8 8", USAGE), ("watermark keygen s p --shape 8 8 x", USAGE),
    ("watermark keygen s p --shape 8 -8 1", USAGE), ("watermark keygen s p --shape 8 8 1 --classes 1", USAGE),
    ("watermark keygen s p --shape 8 8 1 --classes x", USAGE), ("watermark keygen s p --shape 8 8 1 --count 0", USAGE),
    ("watermark keygen s p --shape 8 8 1 --count -4", USAGE), ("watermark keygen s p --shape 8 8 1 --kind nope", FAILED),
    ("watermark keygen s p --images nowhere.npz", FAILED), ("watermark keygen s p --images text.npz", FAILED),
    ("watermark keygen s p --images empty.npz", FAILED), ("watermark keygen s p --images good.npz --previous nowhere", FAILED),
    ("watermark keygen s p --images other.npz", FAILED), ("watermark keygen s p --images good.npz --previous cut.json", FAILED),
    ("watermark keygen s p --beacon 00", FAILED), ("watermark keygen s p --labels-of key.json", USAGE),
    ("watermark keygen s p --labels-of key.json key.json", FAILED),
    ("watermark keygen s p --labels-of key.json key.json --beacon xyz", FAILED),
    ("watermark keygen s p --labels-of key.json key.json --beacon 00 --owner me", FAILED),
    ("watermark mark", USAGE), ("watermark mark nowhere out", FAILED), ("watermark mark key.json out", FAILED),
    ("watermark mark list.json out", FAILED), ("watermark mark cut.json out", FAILED), ("watermark mark text.npz out", FAILED),
    ("watermark mark s.json empty", FAILED), ("watermark mark s.json out --dataset nope", FAILED),
    ("watermark mark s.json out --network nope", FAILED), ("watermark mark s.json out --from nowhere", FAILED),
    ("watermark mark s.json out --seed x", USAGE), ("watermark mark s.json out --seed -1", USAGE),
    ("watermark mark s.json out --steps 0", USAGE), ("watermark mark s.json out --batch-size 0", USAGE),
    ("watermark mark s.json out --triggers-per-batch 0", USAGE), ("watermark mark s.json out --learning-rate 0", USAGE),
    ("watermark mark s.json out --learning-rate nan", USAGE), ("watermark mark s.json out --learning-rate -1", USAGE),
    ("watermark mark s.json out --learning-rate inf", USAGE), ("watermark mark s.json out --decay-every -1", USAGE),
    ("watermark verify", USAGE), ("watermark verify s.json p.json", USAGE), ("watermark verify nowhere p.json x", FAILED),
    ("watermark verify s.json nowhere x", FAILED), ("watermark verify p.json s.json x", FAILED),
    ("watermark verify s.json p.json nowhere", FAILED), ("watermark verify s.json p.json nowhere.pt2", FAILED),
    ("watermark verify s.json p.json text.npz", FAILED), ("watermark verify s.json p.json x --layout CHWN", USAGE),
    ("watermark verify s.json p.json x --alpha 0", USAGE), ("watermark verify s.json p.json x --alpha 1", USAGE),
    ("watermark verify s.json p.json x --alpha nan", USAGE), ("watermark verify s.json p.json x --epsilon 1", USAGE),
    ("watermark verify s.json p.json x --epsilon -0.1", USAGE), ("watermark verify s.json p.json x --near 0", USAGE),
    ("watermark verify s.json p.json x --null -1", USAGE), ("watermark verify s.json p.json x --null-steps 0", USAGE),
    ("watermark verify s.json p.json x --task-rows 0", USAGE), ("watermark verify s.json p.json x --seed -1", USAGE),
    ("watermark verify s.json p.json x --truth nowhere.npz", FAILED), ("watermark verify s.json p.json x --truth text.npz", FAILED),
    ("watermark verify s.json p.json x --json good.npz", FAILED), ("watermark verify s.json p.json x --json text.npz/v.json", FAILED),
    ("watermark verify s.json p.json x --network nope", FAILED), ("watermark verify s.json p.json http://", FAILED),
    ("watermark verify s.json p.json http://127.0.0.1:1 --null 0", FAILED),
    # export
    ("export", USAGE), ("export digits", USAGE), ("export digits --to tflite", USAGE), ("export digits --to", USAGE),
    ("export digits --to stablehlo --nope", USAGE), ("export nowhere --to stablehlo", FAILED),
    ("export empty --to stablehlo", FAILED), ("export text.npz --to stablehlo", FAILED),
    ("export mine.py:scores --to stablehlo --declare shape=8,8,1", FAILED),
    ("export digits --to safetensors --out good.npz", FAILED), ("export digits --to safetensors --declare shape=9,9,1", FAILED),
    # models of one's own
    *((f"export {model} --to stablehlo", FAILED) for model in (
        "nowhere.pt2", "nowhere.onnx", "nowhere.skops", "nowhere.toml", "nowhere.py:Net", "nowhere.pkl", "net.pkl",
        "none.toml", "cut.toml", "broken.py:f", "mine.py:nothing", "mine.py:Net", "mine.py:NUMBER", "mine.py:scores",
        "nowhere.safetensors", "nowhere.stablehlo",
    )),
    *((f"serve mine.py:{name} --declare {said}", FAILED) for name, said in (
        ("holes", "shape=8,8,1"), ("one", "shape=8,8,1"), ("short", "shape=8,8,1"), ("sigmoids", "shape=8,8,1"),
        ("fails", "shape=8,8,1"), ("needs", "shape=8,8,1"), ("scores", "shape=8,8,1 classes=9"),
        ("scores", "shape=8,8,1 gives=label"), ("scores", "shape=8,8,1 gives=probabilities"), ("scores", "shape=0"),
        ("scores", "shape=a"), ("scores", "shape"), ("scores", "shape="), ("scores", "nope=3"), ("scores", "shape=8,8,1 shape=8"),
        ("scores", "shape=8,8,1 gives=scores"), ("scores", "shape=8,8,1 box=1,0"), ("scores", "shape=8,8,1 batch=0"),
        ("scores", "shape=8,8,1 trusted=maybe"), ("scores", "shape=8,8,1 network=lenet5"), ("scores", "shape=8,8,1 classes=x"),
    )),
    # data of one's own, in recipes
    *((f"run knockoff --out out --teacher mlp_small --dataset {name}", FAILED) for name in (
        "nowhere.npz", "text.npz", "empty.npz", "other.npz", "flat.npz", "floats.npz", "bare.npz", "first.npz", "seven.npz",
        "half.npz", "single.npz", "big.npz", "holed.npz", "empty", "nowhere", "nowhere.csv:y", "empty.csv:y", "names.csv:b",
        "ragged.csv", "gap.csv", "words.csv", "twice.csv:a", "alone.csv", "people.csv", "people.csv:nope", "wages.csv:wage",
        "pixels.csv", "bright.csv",
    )),
    *((f"run {name} --out out --dataset {rest}", FAILED) for name, rest in (
        ("dafl", "people.csv:buys"), ("copycat", "people.csv:buys"), ("dafl", "bare.npz"), ("knockoff", "people.csv:buys --teacher lenet5"),
        ("knockoff", "people.csv:buys --pool-dataset shapes"), ("knockoff", "people.csv:buys --pool-dataset digits"),
        ("knockoff", "digits --pool-dataset uniform"), ("knockoff", "digits --pool-dataset nowhere.npz"),
        ("knockoff", "digits --victim nowhere.onnx"), ("knockoff", "digits --victim mine.py:fails"),
        ("knockoff", "people.csv:buys --victim mine.py:scores"), ("knockoff", "bare.npz --victim mine.py:scores --points 2"),
        ("dafl", "good.npz --teacher mine.py:scores"), ("ewe", "good.npz --teacher mine.py:scores"),
        ("few-shot", "bare.npz --teacher digits.toml"),
    )),
    # dataset inference
    ("dataset-inference", USAGE), ("dataset-inference --victim digits", USAGE),
    *((f"dataset-inference --victim digits --suspect digits --private {a} --public {b}", FAILED) for a, b in (
        ("nowhere.npz", "good.npz"), ("good.npz", "nowhere.npz"), ("text.npz", "good.npz"), ("good.npz", "empty.npz"),
        ("other.npz", "good.npz"), ("flat.npz", "good.npz"), ("good.npz", "short.npz"), ("floats.npz", "good.npz"),
        ("good.npz", "empty"),
    )),
    *((f"dataset-inference --victim nowhere --suspect digits --private good.npz --public good2.npz {more}", code)
      for more, code in (
        ("", FAILED), ("--network nope", FAILED), ("--classes 1", USAGE), ("--classes x", USAGE), ("--embedding nope", FAILED),
        ("--noise 0", USAGE), ("--noise nan", USAGE), ("--starts 0", USAGE), ("--max-steps 0", USAGE), ("--alpha 0", USAGE),
        ("--alpha 1.5", USAGE), ("--alpha nan", USAGE), ("--looks 0", USAGE), ("--revealed 1", USAGE), ("--seed x", USAGE),
        ("--independents 0", USAGE), ("--references -1", USAGE), ("--training-steps 0", USAGE), ("--ledger l", FAILED),
        ("--budget 5", FAILED), ("--budget -1", USAGE), ("--key k", FAILED), ("--out good.npz", FAILED),
        ("--out text.npz/v.json", FAILED), ("--others nowhere.npz", FAILED), ("--others text.npz", FAILED),
        ("--independent nowhere", FAILED), ("--nope", USAGE),
    )),
]  # fmt: skip
"""Commands in the directory of `place`, and their exit codes."""

ROWS = [(f"run {recipe} {options}", USAGE) for recipe, all_of in RUN.items() for options in all_of] + COMMANDS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory of files that are none, and a few sound ones."""
    where = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        (where / name).write_bytes(content)
    (where / "none.txt").write_text("\n")
    (where / "empty").mkdir()
    pixels = np.random.default_rng(0)
    for name in ("good.npz", "good2.npz"):
        np.savez(where / name, images=pixels.random((40, 8, 8, 1), np.float32), labels=np.arange(40) % 10)
    np.savez(where / "short.npz", images=pixels.random((3, 8, 8, 1), np.float32), labels=np.arange(3))
    np.savez(where / "other.npz", a=np.zeros(3))
    grey = pixels.integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(where / "bare.npz", images=grey)
    np.savez(where / "first.npz", images=grey.transpose(0, 3, 1, 2)[:, :, :, :7], labels=np.arange(40) % 10)
    np.savez(where / "seven.npz", images=np.repeat(grey, 7, 3), labels=np.arange(40) % 10)
    np.savez(where / "half.npz", x_train=grey, x_test=grey, y_train=np.arange(40) % 10)
    np.savez(where / "single.npz", images=grey, labels=np.r_[np.zeros(39, int), 1])
    np.savez(where / "big.npz", images=grey.astype(np.float32), labels=np.arange(40) % 10)
    np.savez(where / "holed.npz", images=np.full((40, 8, 8, 1), np.nan, np.float32), labels=np.arange(40) % 10)
    np.savez(where / "flat.npz", images=np.zeros((40, 64), np.float32), labels=np.arange(40) % 10)
    np.savez(where / "floats.npz", images=np.zeros((40, 8, 8, 1), np.float32), labels=np.zeros(40))
    made = [
        "watermark",
        "keygen",
        str(where / "s.json"),
        str(where / "p.json"),
        "--shape",
        "8",
        "8",
        "1",
        "--count",
        "20",
    ]
    assert cli.main(made) == 0
    return where


def test_there_are_at_least_two_hundred():
    assert len(ROWS) == len({line for line, _ in ROWS}) >= 200


@pytest.mark.parametrize(("line", "code"), ROWS, ids=[line or "nothing" for line, _ in ROWS])
def test_wrong_input(place, monkeypatch, capsys, line, code):
    """One line that begins with the program's name, and nothing that was not there before."""
    monkeypatch.chdir(place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert cli.main(line.split()) == code, line
    shown = capsys.readouterr()
    said = [text for text in shown.err.splitlines() if text.strip()]
    if line not in ("run",):  # which shows its usage
        assert len(said) == 1, shown.err
    assert said[0].startswith(("dfke", "usage: dfke")), said[0]
    assert "Traceback" not in shown.err + shown.out
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    # Python itself keeps the bytecode of a user's file beside it
    files = lambda of: {path for path in of if path.is_file() and path.suffix not in (".lock", ".pyc")}
    assert files(after) == files(before)
    assert json.loads((place / "key.json").read_text()) == {}
