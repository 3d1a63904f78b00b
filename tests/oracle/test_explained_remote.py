"""Explanations over HTTP: what is answered, refused, charged and counted, and MEGEX through it."""

import io

import httpx
import jax
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import EndpointError, InputError, LedgerError
from dfke_jax.extraction import MEGEXSettings, megex
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import (
    Explained,
    Explanation,
    Ledger,
    Metered,
    RemoteVictim,
    Reveal,
    background,
    check_explained,
    create_app,
    explanation_oracle,
)
from dfke_jax.oracle.answering import answering, explaining
from dfke_jax.oracle.codec import arrays_from_npy, to_npy

SHAPE = (8, 8, 1)
KEY = jax.random.key(31)
ROWS = np.asarray(jax.random.uniform(KEY, (5, *SHAPE)))
NPY = {"Content-Type": "application/x-npy"}


@pytest.fixture(scope="module")
def victim():
    return Classifier.create(MLP(3, (12,)), jax.random.key(0), SHAPE)


def application(victim, setting=None, **limits):
    setting = setting or Explanation()
    return create_app(
        answering(victim, Reveal()),
        input_shape=SHAPE,
        reveal=Reveal(),
        num_classes=3,
        explain=explaining(victim, Reveal(), setting),
        explanation=setting,
        **limits,
    )


@pytest.fixture(scope="module")
def endpoint(victim):
    """(URL, application) of one that explains by gradients of all classes."""
    app = application(victim)
    with background(app) as url:
        yield url, app


@pytest.mark.slow
def test_megex_over_http_is_megex_in_the_process(victim, endpoint, tmp_path):
    url, app = endpoint
    accounts = app.state.service.accounts
    before = dict(accounts.charged), dict(accounts.explained)
    settings = MEGEXSettings(
        batch_size=8, clone_batches=2, latent=6, width=2, schedule="constant", clone_rate=0.05,
        generator_optimizer="sgd", generator_rate=1e-3,
    )  # fmt: skip
    attack = megex(Classifier.create(MLP(3, (12,)), jax.random.key(1), SHAPE), settings)
    oracle = explanation_oracle(victim)
    path, steps = tmp_path / "ledger", 3
    with RemoteVictim(url, explain=True, batch=10) as remote:
        with Ledger(path, budget=72) as ledger:
            far = core.run(core.against(attack, Metered(remote, ledger), host=True), KEY, steps).state
            counts = ledger.counts()
        with Ledger(path, budget=72) as ledger:  # the same run again is answered from the file, explanations too
            again = core.run(core.against(attack, Metered(remote, ledger), host=True), KEY, steps).state
            assert ledger.counts() == {**counts, "cache_hits": 72}
    with Ledger(budget=72) as ledger:
        near = core.run(core.against(attack, Metered(oracle, ledger, batch=10), host=True), KEY, steps).state
        assert ledger.counts() == counts
    assert (counts["rows"], counts["explanation_rows"], counts["requests"]) == (72, 72, 9)
    with Ledger(budget=72) as ledger:
        ledger.reserve(72)
        fused = core.run(core.against(attack, oracle), KEY, steps).state
        ledger.charge(72, explained=True)
        assert (ledger.counts()["rows"], ledger.counts()["explanation_rows"]) == (72, 72)
    for state in (again, near, fused):
        for a, b in zip(jax.tree.leaves(far), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for now, then in zip((accounts.charged, accounts.explained), before, strict=True):
        assert now["anybody"] - then.get("anybody", 0) == 72


@pytest.mark.slow
def test_what_is_answered(victim, endpoint):
    url, _ = endpoint
    wanted = explanation_oracle(victim)(ROWS)
    with RemoteVictim(url, explain=True, batch=2) as remote:
        assert remote.explanation == Explanation()
        answers = remote(ROWS)
        assert isinstance(answers, Explained)
        for part, expected in zip(answers, wanted, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-7)
    with RemoteVictim(url) as plain:
        assert plain.explanation is None
        np.testing.assert_allclose(plain(ROWS), wanted.probabilities, rtol=1e-5)
    said = httpx.post(f"{url}/v1/explain", json={"rows": ROWS.tolist()}).json()
    assert set(said) == {"answers", "explanations"}
    np.testing.assert_allclose(np.float32(said["explanations"]), wanted.explanation, rtol=1e-5, atol=1e-7)


def test_limits(victim):
    """The size of answers, the quota of explanations, and one idempotency key for one question."""
    top = Explanation("smooth_grad", classes="top", samples=2, decimals=3)
    app = application(victim, top, explanation_quota=8, max_bytes=2200)
    with background(app) as url, RemoteVictim(url, explain=True) as remote:
        assert remote.explanation == top
        assert remote.max_rows == 2200 // (4 * (3 + 64)) == 8
        answers = remote(ROWS)
        assert answers.explanation.shape == (5, *SHAPE)
        np.testing.assert_allclose(answers.explanation, answers.explanation.round(3), atol=1e-6)
        with pytest.raises(EndpointError, match="4 explanations asked, 5 of 8 used; nothing was charged"):
            remote(1 - ROWS[:4])
        used = {"rows": 5, "requests": 1, "quota": None, "explanation_rows": 5, "explanation_quota": 8}
        assert remote.usage() == used
        body = to_npy(ROWS[:1])
        headers = {**NPY, "Idempotency-Key": "k"}
        first = httpx.post(f"{url}/v1/explain", content=body, headers=headers)
        again = httpx.post(f"{url}/v1/explain", content=body, headers=headers)
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        other = httpx.post(f"{url}/v1/predict", content=body, headers=headers)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
        assert remote.usage() == {**used, "rows": 6, "requests": 2, "explanation_rows": 6}


def test_requests_are_as_small_as_their_answers_demand(victim):
    app = application(victim, max_bytes=2200)
    with background(app) as url:
        assert httpx.get(f"{url}/v1/describe").json()["limits"]["max_explained"] == 2200 // (4 * (3 + 3 * 64)) == 2
        answer = httpx.post(f"{url}/v1/explain", content=to_npy(ROWS[:3]), headers=NPY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_rows")
        assert httpx.post(f"{url}/v1/predict", content=to_npy(ROWS[:3]), headers=NPY).status_code == 200


def test_an_endpoint_without_explanations(victim):
    app = create_app(answering(victim, Reveal()), input_shape=SHAPE, reveal=Reveal(), num_classes=3)
    with background(app) as url:
        answer = httpx.post(f"{url}/v1/explain", content=to_npy(ROWS), headers=NPY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_explanations")
        with pytest.raises(InputError, match="explains nothing"):
            RemoteVictim(url, explain=True)


def test_explanations_that_are_none_are_not_charged():
    def explain(rows):
        return np.full((len(rows), 3), 1 / 3, np.float32), np.full((len(rows), 3, *SHAPE), np.nan, np.float32)

    app = create_app(
        lambda rows: explain(rows)[0], input_shape=SHAPE, reveal=Reveal(), num_classes=3, explain=explain,
        explanation=Explanation(),
    )  # fmt: skip
    with background(app) as url:
        answer = httpx.post(f"{url}/v1/explain", content=to_npy(ROWS), headers=NPY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "failed")
        usage = httpx.get(f"{url}/v1/usage").json()
        assert (usage["rows"], usage["requests"], usage["explanation_rows"]) == (0, 0, 0)


def test_answers_are_checked():
    p, maps = np.full((2, 3), 1 / 3, np.float32), np.zeros((2, 3, *SHAPE), np.float32)
    top = Explanation(classes="top")
    check_explained((p, maps), 2, 3, SHAPE, Reveal(), Explanation())
    check_explained((p, maps[:, 0]), 2, 3, SHAPE, Reveal(), top)
    for answers, setting, message in (
        (p, Explanation(), "asked probabilities and their explanations, got ndarray"),
        ((p, maps), top, r"shape \(2, 8, 8, 1\)"),
        ((p, maps[:, :2]), Explanation(), r"shape \(2, 3, 8, 8, 1\)"),
        ((p, maps.astype(int)), Explanation(), "int64"),
        ((p, maps + np.inf), Explanation(), "2 of 2 explanations"),
        ((2 * p, maps), Explanation(), "sum to 1"),
    ):
        with pytest.raises(InputError, match=message):
            check_explained(answers, 2, 3, SHAPE, Reveal(), setting)


def test_two_arrays_in_one_body():
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.ones((2, 4)))
    body = to_npy(first) + to_npy(second)
    for found, expected in zip(arrays_from_npy(body, 2), (first, second), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    buffer = io.BytesIO(body)
    np.testing.assert_array_equal(np.load(buffer), first)
    np.testing.assert_array_equal(np.load(buffer), second)
    for spoilt, count in ((body[:-1], 2), (body, 1), (body + b"x", 2), (to_npy(first), 2)):
        with pytest.raises(InputError):
            arrays_from_npy(spoilt, count)


def test_another_kind_of_explanation_is_another_question(victim):
    """A ledger keeps them apart, and answers that nobody explained as well."""
    with Ledger() as ledger:
        for setting in (Explanation(), Explanation("sign"), Explanation("sign", classes="top")):
            answers = Metered(explanation_oracle(victim, setting), ledger)(ROWS)
            assert isinstance(answers, Explained)
            assert answers.explanation.shape[1:] == ((3, *SHAPE) if setting.classes == "all" else SHAPE)
        assert ledger.counts()["explanation_rows"] == 15
        assert ledger.counts()["cache_hits"] == 0
        with pytest.raises(LedgerError, match="this kind of answer"):
            Metered(lambda rows: rows, ledger, reveal=Reveal("label"))


def test_settings_that_do_not_fit(victim):
    with pytest.raises(InputError, match="belong together"):
        create_app(lambda rows: rows, input_shape=SHAPE, reveal=Reveal(), num_classes=3, explanation=Explanation())
    with pytest.raises(InputError, match="'label' has no probabilities"):
        create_app(
            lambda rows: rows, input_shape=SHAPE, reveal=Reveal("label"), num_classes=3, explain=lambda rows: rows,
            explanation=Explanation(),
        )  # fmt: skip
    with pytest.raises(InputError, match="belongs to an endpoint that explains"):
        create_app(lambda rows: rows, input_shape=SHAPE, reveal=Reveal(), num_classes=3, explanation_quota=3)
