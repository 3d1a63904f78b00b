"""The endpoint over real sockets: what it takes, what it refuses and with which status, and what it charges."""

import concurrent.futures
import io
import json
import threading
import time

import httpx
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.oracle import Reveal, background, create_app
from dfke_jax.oracle.limits import Accounts, Endpoint, Refusal

SHAPE = (4, 4, 1)
WEIGHTS = np.random.default_rng(5).normal(size=(16, 3))
NPY = {"Content-Type": "application/x-npy"}


def probabilities(rows):
    logits = rows.reshape(len(rows), -1).astype(np.float64) @ WEIGHTS
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def some_rows(count, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE)).astype(np.float32)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def application(predict=probabilities, **options):
    options = {"input_shape": SHAPE, "reveal": Reveal(), "num_classes": 3, **options}
    return create_app(predict, **options)


@pytest.fixture
def client():
    """Opens an application and gives a client of it."""
    opened = []

    def make(*args, **options):
        app = application(*args, **options)
        server = background(app)
        client = httpx.Client(base_url=server.__enter__(), timeout=10)
        opened.append((server, client))
        client.app = app
        return client

    yield make
    for server, client in opened:
        client.close()
        server.__exit__(None, None, None)


def code(answer):
    assert set(answer.json()) == {"error"}
    return answer.status_code, answer.json()["error"]["code"]


def test_it_answers_what_the_victim_says(client):
    client, rows = client(), some_rows(5)
    answer = client.post("/v1/predict", content=npy(rows), headers=NPY)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content), allow_pickle=False), probabilities(rows))
    for body in ({"rows": rows.tolist()}, rows.tolist()):
        answer = client.post("/v1/predict", json=body)
        np.testing.assert_array_equal(np.float32(answer.json()["answers"]), probabilities(rows))
    assert client.get("/v1/usage").json() == {"rows": 15, "requests": 3, "quota": None}


def test_bytes_are_pixels_across_the_box(client):
    rows = np.random.default_rng(1).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    seen = []
    client = client(lambda rows: seen.append(rows) or probabilities(rows), box=(-1.0, 1.0))
    assert client.post("/v1/predict", content=npy(rows), headers=NPY).status_code == 200
    assert seen[0].dtype == np.float32
    np.testing.assert_allclose(seen[0], rows / 127.5 - 1, atol=1e-6)


def test_it_describes_itself(client):
    said = client(reveal=Reveal("top_k", k=2, decimals=3), quota=100, rate=50, max_rows=64).get("/v1/describe").json()
    assert said["input_shape"] == [4, 4, 1]
    assert said["num_classes"] == 3
    assert said["box"] == [0.0, 1.0]
    assert Reveal(**said["reveal"]) == Reveal("top_k", k=2, decimals=3)
    assert said["limits"] == {"max_rows": 50, "max_bytes": 64 * 2**20, "quota": 100, "rate": 50}
    assert said["idempotency"] is True


def test_keys(client):
    client = client(keys=["one", "zwei-ü"])
    for headers in (
        {},
        {"X-API-Key": "on"},
        {"X-API-Key": ""},
        {"Authorization": "Bearer onee"},
        {"Authorization": "one"},
    ):
        for path in ("/v1/describe", "/v1/usage"):
            answer = client.get(path, headers=headers)
            assert code(answer) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/predict", content=npy(some_rows(1)), headers={**NPY, **headers}).status_code == 401
    good = {"Authorization": "Bearer one"}
    assert client.post("/v1/predict", content=npy(some_rows(2)), headers={**NPY, **good}).status_code == 200
    assert client.get("/v1/usage", headers={"X-API-Key": "one"}).json()["rows"] == 2
    assert client.get("/v1/usage", headers={b"X-API-Key": "zwei-ü".encode("latin-1")}).json()["rows"] == 0


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "npy"),
        (b"garbage", "npy"),
        (npy(some_rows(2))[:-5], "announces"),
        (npy(some_rows(2)).replace(b"(2, 4, 4, 1)", b"(9, 9, 9, 9)"), "announces"),
        (npy(some_rows(2)[..., 0]), r"shape \(B, 4, 4, 1\)"),
        (npy(np.zeros((0, *SHAPE), np.float32)), "B >= 1"),
        (npy(some_rows(2).astype(np.float64)), "float32 or uint8"),
        (npy(some_rows(2) * np.float32("nan")), "NaN"),
        (npy(some_rows(2) + 1), r"\[0.0, 1.0\]"),
        (npy(np.array([b"xy"])), "numbers"),
    ],
)
def test_bad_rows_are_named_and_not_charged(client, body, match):
    import re

    client = client()
    answer = client.post("/v1/predict", content=body, headers=NPY)
    assert code(answer) == (422, "bad_input")
    assert re.search(match, answer.json()["error"]["message"])
    assert client.get("/v1/usage").json()["rows"] == 0


def test_a_pickle_is_never_opened(client):
    """An array of objects whose unpickling would leave a trace."""
    opened = []

    class Trap:
        def __reduce__(self):
            return opened.append, ("opened",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], object), allow_pickle=True)
    assert code(client().post("/v1/predict", content=buffer.getvalue(), headers=NPY)) == (422, "bad_input")
    assert not opened


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"row": []}', b"[[1, 2], [3]]", b'"text"', b'[["a"]]', b"[" * 100_000, b"[NaN]", b"\xff\xfe", b"{}"],
)
def test_bad_json_is_refused(client, body):
    answer = client().post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert code(answer) == (422, "bad_input")


def test_sizes_types_and_paths(client):
    client = client(max_rows=4, max_bytes=2000)
    assert code(client.post("/v1/predict", content=npy(some_rows(5)), headers=NPY)) == (413, "too_many_rows")
    assert code(client.post("/v1/predict", content=b"x" * 2001, headers=NPY)) == (413, "too_large")
    chunked = client.post("/v1/predict", content=(b"x" * 100 for _ in range(30)), headers=NPY)
    assert code(chunked) == (413, "too_large")
    assert code(client.post("/v1/predict", content=npy(some_rows(1)), headers={"Content-Type": "text/csv"}))[0] == 415
    assert code(client.get("/v2/describe"))[0] == 404
    assert code(client.get("/v1/predict"))[0] == 405
    assert (
        code(client.post("/v1/predict", content=npy(some_rows(1)), headers={**NPY, "Idempotency-Key": "k" * 257}))[0]
        == 422
    )
    assert client.post("/v1/predict", content=npy(some_rows(4)), headers=NPY).status_code == 200


def test_a_quota_belongs_to_its_key(client):
    client = client(keys=["a", "b"], quota=5)
    post = lambda key, count: client.post(
        "/v1/predict", content=npy(some_rows(count)), headers={**NPY, "X-API-Key": key}
    )
    assert post("a", 3).status_code == 200
    assert code(post("a", 3)) == (403, "quota_exceeded")
    assert post("a", 2).status_code == 200
    assert code(post("a", 1)) == (403, "quota_exceeded")
    assert post("b", 5).status_code == 200


def test_the_rate_is_a_token_bucket():
    """Against a simulation of the bucket, with a clock of its own."""
    now = [0.0]
    accounts = Accounts(Endpoint(SHAPE, 3, Reveal(), rate=10.0, burst=20), None, lambda: now[0])
    generator, tokens, then = np.random.default_rng(0), 20.0, 0.0
    allowed = 0
    for _ in range(300):
        now[0] += float(generator.exponential(0.4))
        rows = int(generator.integers(1, 12))
        tokens, then = min(20.0, tokens + 10 * (now[0] - then)), now[0]
        if tokens >= rows:
            tokens -= rows
            allowed += rows
            accounts.admit("x", rows)
        else:
            with pytest.raises(Refusal) as caught:
                accounts.admit("x", rows)
            assert caught.value.status == 429
            wait = int(caught.value.headers["Retry-After"])
            assert tokens + 10 * wait >= rows
            assert wait == 1 or tokens + 10 * (wait - 1) < rows
    assert accounts.charged["x"] == allowed
    assert allowed <= 20 + 10 * now[0]


def test_a_rate_is_kept_over_the_wire(client):
    now = [0.0]
    client = client(rate=4, clock=lambda: now[0])
    post = lambda count: client.post("/v1/predict", content=npy(some_rows(count)), headers=NPY)
    assert post(3).status_code == 200
    answer = post(4)
    assert code(answer) == (429, "rate_limited")
    assert answer.headers["retry-after"] == "1"
    assert code(post(5)) == (413, "too_many_rows")  # more than the bucket ever holds
    now[0] = 1.0
    assert post(4).status_code == 200
    assert client.get("/v1/usage").json()["rows"] == 7


def test_a_repeated_request_is_answered_again_and_charged_once(client):
    draws = np.random.default_rng(0)
    client = client(lambda rows: probabilities(draws.random(rows.shape)), keys=["a", "b"], quota=5)

    def post(name, rows, key="a"):
        return client.post("/v1/predict", content=npy(rows), headers={**NPY, "X-API-Key": key, "Idempotency-Key": name})

    first, again, other = post("n1", some_rows(3)), post("n1", some_rows(3)), post("n2", some_rows(2))
    assert first.content == again.content != other.content
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert client.get("/v1/usage", headers={"X-API-Key": "a"}).json() == {"rows": 5, "requests": 2, "quota": 5}
    assert code(post("n1", some_rows(3, seed=9))) == (422, "idempotency_mismatch")
    assert post("n1", some_rows(3), key="b").content != first.content  # names belong to their key
    assert code(post("n3", some_rows(1))) == (403, "quota_exceeded")
    assert post("n1", some_rows(3)).content == first.content  # a recorded answer needs no quota


def test_the_same_request_at_the_same_time_is_computed_once(client):
    calls, gate = [], threading.Event()

    def slow(rows):
        calls.append(len(rows))
        gate.wait(5)
        return probabilities(rows)

    client = client(slow)
    post = lambda _: client.post("/v1/predict", content=npy(some_rows(2)), headers={**NPY, "Idempotency-Key": "x"})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(post, i) for i in range(4)]
        while not calls:
            time.sleep(0.01)
        gate.set()
        assert len({answer.result().content for answer in answers}) == 1
    assert calls == [2]
    assert client.get("/v1/usage").json()["rows"] == 2


def test_a_victim_that_fails_costs_nothing(client):
    answers = [ValueError("secret path /x/y"), np.ones((2, 3), np.float32), np.full((2, 3), np.nan), None]

    def predict(rows):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return probabilities(rows) if answer is None else answer

    client = client(predict)
    post = lambda: client.post("/v1/predict", content=npy(some_rows(2)), headers={**NPY, "Idempotency-Key": "x"})
    for _ in range(3):
        answer = post()
        assert code(answer) == (500, "failed")
        assert "secret" not in answer.text
        assert client.get("/v1/usage").json()["rows"] == 0
    assert post().status_code == 200
    assert client.get("/v1/usage").json()["rows"] == 2


def test_recorded_answers_are_bounded(client):
    client = client(max_recorded=2000)
    post = lambda name: client.post("/v1/predict", content=npy(some_rows(4)), headers={**NPY, "Idempotency-Key": name})
    for i in range(30):
        post(f"n{i}")
    recorded = client.app.state.service._recorded
    assert 0 < len(recorded) <= 2000 // 256
    assert post("n29").headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in post("n0").headers


def test_labels_are_integers(client):
    client = client(lambda rows: probabilities(rows).argmax(1), reveal=Reveal("label"))
    rows = some_rows(6)
    said = client.post("/v1/predict", content=json.dumps(rows.tolist()), headers={"Content-Type": "application/json"})
    assert said.json()["answers"] == probabilities(rows).argmax(1).tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_shape": ()},
        {"num_classes": 0},
        {"rate": 0},
        {"burst": 0},
        {"box": (1, 0)},
        {"max_rows": 0},
        {"quota": -1},
        {"dtype": "int8"},
        {"keys": []},
        {"keys": "secret"},
        {"keys": [""]},
    ],
)
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(InputError):
        application(**wrong)
