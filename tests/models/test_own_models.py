"""The table of `docs/own_models.md`, executed: every kind of model against everything that is done with one."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from example_files import example
from victim_kinds import CLASSES, KINDS, SERVED, SHAPE, SLOW

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.dataset_inference import BlindWalkSettings, InferenceSettings, judge, prepare
from dfke_jax.distillation.class_impressions import ClassImpressionSettings, class_impressions
from dfke_jax.models import OPENERS, open_model
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Ledger, Metered
from dfke_jax.watermarking import backdoor
from dfke_jax.watermarking.verification import verify

PAGE = (Path(__file__).resolve().parents[2] / "docs/own_models.md").read_text()
ROW = r"^\| ([^|]+) \| ([^|]+) \| (yes|no) \| (yes|no) \| (yes|no) \| ([^|]+) \|$"
TABLE = {found[0]: found[1:] for found in re.findall(ROW, PAGE, re.MULTILINE)}
QUICK = {"function", "torch_module"}
MAKERS = [
    pytest.param((kind, maker), id=maker.__name__, marks=[] if maker.__name__ in QUICK else [pytest.mark.slow])
    for kind, makers in KINDS.items()
    for maker in makers
]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of other libraries


def network():
    return Classifier.create(MLP(CLASSES, (6,)), jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(1)
    private, public = ((rng.random((24, *SHAPE)).astype(np.float32), np.arange(24) % CLASSES) for _ in range(2))
    settings = InferenceSettings(walk=BlindWalkSettings(starts=1, max_steps=4, noise=4.0))
    return prepare(private, public, victim=network(), key=jax.random.key(0), settings=settings)


@pytest.fixture(scope="module")
def keys():
    return backdoor.keygen(CLASSES, shape=SHAPE, count=12, kind="noise")


@pytest.fixture
def model(request, tmp_path, monkeypatch):
    kind, maker = request.param
    made = maker(tmp_path, monkeypatch)
    with open_model(made.where, **made.declared) as opened:
        yield kind, opened
    while SERVED:
        SERVED.pop().__exit__(None, None, None)


def extraction(model):
    """Some steps of an attack on a pool, with a ledger; of a model on the host every answer is metered."""
    of = example("howto/unsure_queries")
    settings = of.UnsureSettings(queries_per_step=3, choice=2, updates=2)
    pool, oracle = jax.random.uniform(jax.random.key(1), (12, *SHAPE)), model.oracle()
    attack = of.unsure_queries(network(), pool, oracle.reveal, settings)
    with Ledger(budget=settings.queries(2)) as ledger:
        asked = Metered(oracle, ledger) if model.on_host else oracle
        core.run(core.against(attack, asked), jax.random.key(2), 2)
        assert not model.on_host or ledger.counts()["rows"] <= settings.queries(2)


def inference(model, case):
    verdict = judge(case, model.victim)
    assert 0 <= verdict.p_value <= 1
    assert verdict.queries > 0


def verification(model, keys):
    verdict = verify(*keys, model.victim)
    assert not verdict.rejected
    assert verdict.queries == 12


def white_box(model):
    settings = ClassImpressionSettings(steps=2, rotation=0.0, shift=0.0, scaling=(1.0, 1.0))
    teacher = model.needed_classifier("distillation")
    pool = core.run(class_impressions(teacher, settings, CLASSES, CLASSES), jax.random.key(3), 1).state
    assert pool.images.shape == (CLASSES, *SHAPE)


def test_the_page_has_a_row_for_every_kind():
    assert set(TABLE) == {opener.kind for opener in OPENERS if opener.takes != "refused"} == set(KINDS)
    written = {opener.kind: opener.takes for opener in OPENERS}
    for kind, (takes, *_) in TABLE.items():
        assert takes.replace("`", "") == written[kind], kind


@pytest.mark.parametrize("model", MAKERS, indirect=True)
def test_a_row_of_the_table(model, case, keys):
    kind, opened = model
    cells = (extraction, lambda m: inference(m, case), lambda m: verification(m, keys), white_box)
    for cell, said in zip(cells, TABLE[kind][1:], strict=True):
        if said == "yes" or (said != "no" and opened.white_box):  # "no", and of some of a kind
            cell(opened)
        else:
            with pytest.raises(InputError, match=r"shows none: .*; possible are extraction from answers"):
                cell(opened)


def test_slow_kinds_are_known():
    assert {maker.__name__ for makers in KINDS.values() for maker in makers} >= SLOW | QUICK
