"""The endpoint over real sockets: what it takes, what it refuses and with which status, and what it charges."""

import concurrent.futures
import contextlib
import io
import json
import logging
import select
import socket
import threading
import time
import tracemalloc

import httpx
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.oracle import Reveal, background, create_app, limits
from dfke_jax.oracle.codec import from_npy
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
        {"box": (0, float("inf"))},
        {"box": (float("nan"), 1)},
        {"max_bytes": 1000, "max_pending": 999},
        {"body_seconds": 0},
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


# ---- strangers


@contextlib.contextmanager
def peak():
    """A list that holds, after the block, the most MB that Python and NumPy had allocated within it."""
    found = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1] / 2**20)
    finally:
        tracemalloc.stop()


BOMBS = {
    "long texts": b'{"rows": ["' + b"x" * 20_000 + b'"' + b', ""' * 1000 + b"]}",
    "empty lists": b"[" + b"[]," * 100_000 + b"[]]",
    "a deep list": b"[" * 300_000,
    "a deep object": b'{"rows":' * 50_000,
    "many names": b"{" + b",".join(b'"%d": 1' % i for i in range(50_000)) + b"}",
    "many numbers": b"[" + b"1," * 200_000 + b"1]",
    "a long number": b"[[[[" + b"1" * 400_000 + b"]]]]",
    "behind the rows": b'{"rows": [], "more": [' + b"{}," * 100_000 + b"{}]}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_json_takes_no_more_memory_than_its_rows(kind):
    """Whatever stands in a body, it is given up at once, and is not made into anything larger than it is."""
    endpoint, body = Endpoint(SHAPE, 3, Reveal()), BOMBS[kind]
    with pytest.raises(InputError, match="JSON must be"):
        endpoint.rows(b"[[1]]", "application/json")  # imports
    with peak() as found, pytest.raises(InputError, match=r"JSON must be|B >= 1"):
        endpoint.rows(body, "application/json")
    assert found[0] < 4 + 2 * len(body) / 2**20


def test_json_of_the_largest_request_takes_little_more_than_its_array():
    endpoint = Endpoint((16, 16, 1), 3, Reveal(), max_rows=128)
    rows = np.random.default_rng(0).random((128, 16, 16, 1)).astype(np.float32)
    body = json.dumps({"rows": rows.tolist()}).encode()
    assert len(body) <= endpoint.most_bytes("application/json")
    with peak() as found:
        got = endpoint.rows(body, "application/json")
    np.testing.assert_array_equal(got, rows)
    assert found[0] < 4 + 32 * rows.size / 2**20  # json.loads makes 120 bytes of each and more


def test_rows_are_counted_before_an_array_of_them_is_made():
    endpoint = Endpoint(SHAPE, 3, Reveal(), max_rows=4, dtype="float64")
    for body, kind in (
        (npy(np.zeros((500_000, *SHAPE), np.uint8)), "application/x-npy"),
        (json.dumps(np.zeros((9000, *SHAPE)).tolist()).encode(), "application/json"),
    ):
        with peak() as found, pytest.raises(Refusal) as caught:
            endpoint.rows(body, kind)
        assert caught.value.code == "too_many_rows"
        assert found[0] < 4


def test_a_body_is_no_longer_than_the_rows_of_a_request(client):
    client = client(max_rows=4)
    for kind in ("application/json", "application/x-npy"):
        body = b"[" + b"[]," * 100_000 + b"[]]"
        assert code(client.post("/v1/predict", content=body, headers={"Content-Type": kind})) == (413, "too_large")


def test_numbers_beyond_the_type_are_refused(client):
    number = "-1e39"
    body = "[[[[" + "], [".join([number] * 4) + "]]" + ", [[0], [0], [0], [0]]" * 3 + "]]"
    said = client().post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert code(said) == (422, "bad_input")
    assert "NaN or infinity" in said.json()["error"]["message"]


def header(text, data=b"\0" * 128):
    text = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


MALFORMED = {
    "no end of a text": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 4, 1), \'\'\'"),
    "no end of a bracket": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 4, 1"),
    "long numbers": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 4, 4, 1), }"),
    "no dimension": header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 32), }"),
    "negative": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4, 4, -1), }", b"\0" * 64),
    "nothing of huge things": header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, " + str(2**70) + "), }", b""),
    "nothing of large things": header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, " + "2147483647, " * 3 + "), }", b""),
    "many axes": header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 70 + "), }", b"\0" * 4),
    "a deep header": header("-" * 9000 + "1"),
    "no name": header("dalse"),
    "indented": header("\n  {}\n {}"),
    "fields": header("{'descr': [('a', '<f4'), ('a', '<f4')], 'fortran_order': False, 'shape': (2,), }"),
    "a type of text": header("{'descr': '|S1099511627776', 'fortran_order': False, 'shape': (0,), }"),
    "a version": b"\x93NUMPY\xff\xff" + b"\0" * 128,
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_headers_of_arrays_are_input_errors(kind):
    with pytest.raises(InputError):
        from_npy(MALFORMED[kind])


def test_malformed_arrays_are_refused(client):
    client = client()
    for body in MALFORMED.values():
        assert code(client.post("/v1/predict", content=body, headers=NPY)) == (422, "bad_input")


@pytest.fixture
def wire():
    """Opens an application and gives connections to it, by a function of what is sent at once."""
    with contextlib.ExitStack() as stack:

        def make(predict=probabilities, serving=None, **options):
            app = application(predict, **options)
            url = stack.enter_context(background(app, **(serving or {})))
            address = ("127.0.0.1", int(url.rpartition(":")[2]))

            def connect(sent=b""):
                connection = stack.enter_context(socket.create_connection(address, timeout=20))
                connection.sendall(sent)
                return connection

            connect.app = app
            return connect

        yield make


def request(body=b"", path=b"/v1/predict", length=None, extra=b""):
    size = str(len(body) if length is None else length).encode()
    head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\nContent-Length: " + size
    return head + b"\r\n" + extra + b"\r\n" + body


def received(connection):
    """All that comes until the other side closes; None when it resets."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            said += piece
    return said


def test_a_body_has_a_deadline(wire):
    """Of 1,000 promised bytes 10 come: the request is answered all the same, and the connection ends."""
    connect = wire(body_seconds=0.2, serving={"header_seconds": 0.2})
    said = received(connect(request(b"x" * 10, length=1000)))
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"too_slow" in said
    assert connect.app.state.service._pending == 0


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /v1/describe HTTP/1.1\r\nHost: x\r\nX: "])
def test_headers_have_a_deadline(wire, begun):
    """A connection that says nothing, or goes on saying something, is closed."""
    connection = wire(serving={"header_seconds": 0.3})(begun)
    said = b"unread"
    for _ in range(2000 if begun else 1):
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            connection.sendall(b"x" if begun else b"")
        if select.select([connection], [], [], 0.01 if begun else 20)[0]:
            said = received(connection)
            break
    assert said == b""


def test_what_follows_an_answer_has_a_deadline(wire):
    """A body that is refused at its announcement may not trickle in for ever."""
    connection = wire(serving={"header_seconds": 0.3})(request(b"x", length=10**12))
    assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")
    for _ in range(2000):
        try:
            connection.sendall(b"x")
        except ConnectionError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the server went on reading")


def test_an_answer_that_nobody_takes_is_given_up(wire, monkeypatch):
    from dfke_jax.oracle.connections import Connection

    ended, lost = Connection.connection_lost, threading.Event()
    monkeypatch.setattr(Connection, "stalled_seconds", 0.2)
    monkeypatch.setattr(Connection, "connection_lost", lambda self, error: (ended(self, error), lost.set()))
    logits = np.zeros((100, 100_000), np.float32)
    connect = wire(lambda rows: logits, num_classes=100_000, reveal=Reveal("logits"))
    connection = connect(request(npy(some_rows(100))))
    assert lost.wait(20)
    assert len(received(connection)) < logits.nbytes


def test_connections_are_counted(wire):
    """From the second on requests are refused for now; a fifth is closed."""
    connect = wire(serving={"max_connections": 2})
    asked = b"GET /v1/describe HTTP/1.1\r\nHost: x\r\n\r\n"
    first = connect(asked)
    assert first.recv(65_536).startswith(b"HTTP/1.1 200 ")
    idle = [connect(), connect()]
    second = connect(asked)
    assert received(second).startswith(b"HTTP/1.1 503 ")
    idle += [connect(), connect()]
    assert received(idle[-1]) == b""
    for connection in idle:
        connection.close()
    for _ in range(500):  # until the server has seen them go
        first.sendall(asked)
        if first.recv(65_536).startswith(b"HTTP/1.1 200 "):
            break
        first = connect()
        time.sleep(0.01)
    else:
        pytest.fail("closed connections count")


def test_bodies_under_way_are_counted(wire):
    """Two bodies of 600 bytes are more than 1,000 at a time: the second is told to come back."""
    connect = wire(max_bytes=1000, max_pending=1000)
    body = npy(some_rows(8))
    assert len(body) == 640
    first = connect(request(body[:600], length=640, extra=b"Connection: close\r\n"))
    while not connect.app.state.service._pending:
        time.sleep(0.005)
    said = received(connect(request(body, extra=b"Connection: close\r\n")))
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in said.lower()
    first.sendall(body[600:])
    assert received(first).startswith(b"HTTP/1.1 200 ")
    assert connect.app.state.service.accounts.charged == {"anybody": 8}


def test_no_memory_is_an_answer(client, monkeypatch):
    """For the rows, and for the model."""
    full = [True]

    def predict(rows):
        if full.pop(0):
            raise MemoryError
        return probabilities(rows)

    client = client(predict)
    post = lambda: client.post("/v1/predict", content=npy(some_rows(2)), headers=NPY)
    answer = post()
    assert code(answer) == (503, "no_room")
    assert answer.headers["retry-after"] == "1"
    with monkeypatch.context() as patch:
        patch.setattr(limits, "from_npy", lambda body: predict(full.append(True)))
        assert code(post()) == (503, "no_room")
    full.append(False)
    assert post().status_code == 200
    assert client.get("/v1/usage").json()["rows"] == 2


def test_records_are_not_gone_through_on_every_request(client):
    """Forgetting the oldest costs the same however many there are."""

    class Unlisted(dict):
        def __iter__(self):
            raise AssertionError("all records were gone through")

        keys = values = items = __iter__

    client = client(max_recorded=3000)
    client.app.state.service._recorded = Unlisted()
    post = lambda name: client.post("/v1/predict", content=npy(some_rows(4)), headers={**NPY, "Idempotency-Key": name})
    for i in range(10):
        assert post(f"n{i}").status_code == 200
    assert post("n9").headers["idempotent-replayed"] == "true"
    assert len(client.app.state.service._recorded) == 2


def test_packed_bodies_are_refused(client):
    answer = client().post("/v1/predict", content=b"x", headers={**NPY, "Content-Encoding": "gzip"})
    assert code(answer) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [("0.0.0.0", None, True), ("0.0.0.0", ["k"], False), ("127.0.0.1", None, False)],
)
def test_an_endpoint_that_is_open_to_all_is_warned_of(caplog, host, keys, warned):
    with caplog.at_level(logging.WARNING, "dfke_jax"), background(application(keys=keys), host):
        said = [record.getMessage() for record in caplog.records if "other machines" in record.getMessage()]
    assert len(said) == warned
