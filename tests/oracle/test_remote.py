"""The client against the real endpoint on loopback: faults on the way, processes killed, and both sides' accounts compared."""

import asyncio
import contextlib
import datetime
import email.utils
import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest

from dfke_jax.core.errors import BudgetError, EndpointError, InputError, LedgerError, UnknownOutcomeError
from dfke_jax.oracle import Ledger, Metered, RemoteVictim, Reveal, background, create_app, remote
from dfke_jax.oracle.codec import to_npy
from dfke_jax.oracle.remote import _seconds

SHAPE, CLASSES = (4, 4, 1), 3
WEIGHTS = np.random.default_rng(5).normal(size=(16, CLASSES))
FAST = {"backoff": 0.01, "max_backoff": 0.02, "timeout": 5.0}


def probabilities(rows):
    logits = rows.reshape(len(rows), -1).astype(np.float64) @ WEIGHTS
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def some_rows(count, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE)).astype(np.float32)


class Faults:
    """Stands before an application and spoils some of the predictions that pass.

    `plan` maps the number of a prediction (from 1) to a fault. ``cut`` and ``slow`` let the application answer first, so
    that the rows are charged and the answer is lost; ``lost`` drops the request before it.
    """

    def __init__(self, app, plan=(), every=None):
        self.app, self.plan, self.every = app, dict(plan), every
        self.count, self.names, self.lock = 0, [], threading.Lock()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not scope["path"].endswith("predict"):
            return await self.app(scope, receive, send)
        with self.lock:
            self.count += 1
            fault = self.plan.get(self.count) or (self.every and self.every(self.count))
        self.names.append(dict(scope["headers"]).get(b"idempotency-key"))
        if fault is None:
            return await self.app(scope, receive, send)
        if fault in ("cut", "slow"):

            async def swallow(message):
                pass

            await self.app(scope, receive, swallow)
            if fault == "slow":
                await asyncio.sleep(0.6)
        else:
            while (await receive()).get("more_body"):
                pass
        status, headers, body = 200, [(b"content-type", b"application/x-npy")], b"\x93NUMPY garbage"
        if isinstance(fault, tuple):
            status, extra = fault
            headers, body = [(name.encode(), value.encode()) for name, value in extra.items()], b"not now"
        elif isinstance(fault, bytes):
            body = fault
        if fault in ("cut", "lost", "slow"):
            headers.append((b"content-length", b"1000"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if fault in ("cut", "lost", "slow"):  # a promise that is not kept: the server closes the connection
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            return None
        await send({"type": "http.response.body", "body": body})
        return None


class World:
    """An endpoint with faults, and clients of it."""

    def __init__(self, plan=(), every=None, predict=probabilities, **options):
        options = {"input_shape": SHAPE, "reveal": Reveal(), "num_classes": CLASSES, **options}
        self.app = create_app(predict, **options)
        self.faults = Faults(self.app, plan, every)
        self.stack = contextlib.ExitStack()
        self.url = self.stack.enter_context(background(self.faults))

    def victim(self, **options):
        victim = RemoteVictim(self.url, **{**FAST, **options})
        self.stack.callback(victim.close)
        return victim

    @property
    def charged(self):
        return sum(self.app.state.service.accounts.charged.values())


@pytest.fixture
def world():
    """Makes worlds, and ends them."""
    made = []

    def make(*args, **options):
        made.append(World(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.stack.close()


def test_the_package_imports_without_the_extra():
    """Neither HTTP client nor server is touched before it is used, and who uses it is told what to install."""
    program = textwrap.dedent(
        """
        import sys
        for name in ("httpx", "starlette", "uvicorn"):
            sys.modules[name] = None
        import numpy as np
        from dfke_jax.oracle import Ledger, Metered, RemoteVictim, Reveal, background, create_app
        Metered(lambda rows: rows[:, 0], Ledger(), "x", Reveal("logits"))(np.zeros((2, 3, 1), np.float32))
        app = lambda: create_app(np.sum, input_shape=(1,), reveal=Reveal(), num_classes=2)
        for use in (app, lambda: background(None).__enter__(), lambda: RemoteVictim("http://x")):
            try:
                use()
            except ValueError as error:
                assert 'pip install -e ".[serve]"' in str(error)
            else:
                raise AssertionError
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)


# ---- an endpoint in good order


@pytest.mark.parametrize(("batch", "concurrency"), [(None, 1), (7, 1), (7, 4), (1, 3), (100, 2)])
def test_answers_come_back_in_order(world, batch, concurrency):
    jitter = random.Random(0)

    def predict(rows):
        time.sleep(jitter.random() * 0.003)
        return probabilities(rows)

    world = world(predict=predict)
    rows = some_rows(30)
    np.testing.assert_array_equal(world.victim(batch=batch, concurrency=concurrency)(rows), probabilities(rows))
    assert world.charged == 30
    assert world.faults.count == -(-30 // (batch or 1024))


def test_it_reads_what_the_endpoint_is(world):
    world = world(predict=lambda rows: probabilities(rows).argmax(1), reveal=Reveal("label"), max_rows=8, keys=["k"])
    victim = world.victim(key="k", input_shape=SHAPE, num_classes=CLASSES)
    assert (victim.input_shape, victim.num_classes, victim.reveal) == (SHAPE, CLASSES, Reveal("label"))
    assert (victim.batch, victim.repeatable, victim.endpoint) == (8, True, world.url)
    rows = some_rows(20)
    np.testing.assert_array_equal(victim(rows), probabilities(rows).argmax(1))
    assert victim.usage()["rows"] == 20
    with pytest.raises(InputError, match="num_classes 10 was expected"):
        world.victim(key="k", num_classes=10)
    with pytest.raises(InputError, match="input_shape"):
        world.victim(key="k", input_shape=(28, 28, 1))
    with pytest.raises(EndpointError, match="valid API key"):
        world.victim(key="wrong")


def test_rows_that_the_endpoint_would_refuse_are_not_sent(world):
    world = world()
    victim = world.victim()
    metered = Metered(victim, Ledger())
    for rows in (
        some_rows(2)[:, :3],
        some_rows(2) + 1,
        some_rows(2) * np.float32("nan"),
        some_rows(2).astype(np.float64),
        some_rows(0),
    ):
        for ask in (victim, metered, metered.evaluate, metered.again):
            with pytest.raises(InputError):
                ask(rows)
    assert world.faults.count == 0
    assert metered.ledger.counts()["requests"] == metered.ledger.spent == 0
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    np.testing.assert_allclose(victim(pixels), probabilities(pixels.astype(np.float32) / 255), atol=1e-6)


def test_a_victim_in_double_precision(world):
    world = world(
        predict=lambda rows: rows.reshape(len(rows), -1) @ WEIGHTS, reveal=Reveal("logits"), dtype="float64", box=None
    )
    rows = 1e3 * np.random.default_rng(0).normal(size=(3, *SHAPE))
    answers = world.victim()(rows)
    assert answers.dtype == np.float64
    np.testing.assert_array_equal(answers, rows.reshape(3, -1) @ WEIGHTS)


# ---- faults, and what they cost


RETRIED = [
    (429, {"Retry-After": "0"}),
    (500, {}),
    (502, {}),
    (503, {}),
    "cut",
    "lost",
]


@pytest.mark.parametrize("fault", RETRIED, ids=str)
def test_faults_that_pass_are_survived_and_nothing_is_paid_twice(world, fault):
    world = world({2: fault, 3: fault, 5: fault})
    ledger = Ledger(budget=12)
    ask = Metered(world.victim(batch=3), ledger)
    rows = some_rows(12)
    np.testing.assert_array_equal(ask(rows), probabilities(rows))
    counts = ledger.counts()
    assert counts["rows"] == counts["unique_rows"] == ledger.spent == world.charged == 12
    assert counts["requests"] == 4
    assert world.faults.count == 7
    assert len(set(world.faults.names)) == 4  # a repetition carries the name of what it repeats


def test_an_answer_that_comes_too_late_is_fetched_once_more(world):
    world = world({1: "slow"})
    ledger = Ledger(budget=3)
    ask = Metered(world.victim(timeout=0.3), ledger)
    np.testing.assert_array_equal(ask(some_rows(3)), probabilities(some_rows(3)))
    assert world.charged == ledger.spent == 3


@pytest.fixture
def waited(monkeypatch):
    """The seconds that clients would have waited; nobody does."""
    seconds = []
    clock = types.SimpleNamespace(sleep=seconds.append, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr("dfke_jax.oracle.remote.time", clock)
    return seconds


def test_retry_after_is_obeyed(world, waited):
    world = world({1: (429, {"Retry-After": "7"}), 2: (503, {}), 4: (429, {"Retry-After": "7"})})
    patient, hasty = world.victim(), world.victim(max_wait=5)
    patient(some_rows(1))
    assert waited[0] == 7
    assert waited[1] <= 0.02
    with pytest.raises(EndpointError, match="asks to wait 7 s in all, more than max_wait=5"):
        hasty(some_rows(1, 1))
    assert len(waited) == 2


def test_being_told_when_to_come_back_is_no_failure(world, waited):
    """Forty refusals by a busy endpoint, with two retries: the client comes back until its patience ends."""
    world = world(every=lambda count: (429, {"Retry-After": "1"}) if count <= 40 else None)
    np.testing.assert_array_equal(world.victim(retries=2)(some_rows(3)), probabilities(some_rows(3)))
    assert waited == [1.0] * 40
    world.faults.every = lambda count: (429, {"Retry-After": "1"})
    with pytest.raises(EndpointError, match="11 attempts"):
        world.victim(retries=2, max_wait=10)(some_rows(3, 1))


def test_a_rate_that_is_named_is_kept(world, waited):
    """Requests are spaced by their rows over the rate, and the endpoint has nothing to refuse."""
    now = [0.0]
    world = world(rate=50.0, clock=lambda: now[0])
    victim = world.victim(batch=10, concurrency=1)

    def sleep(seconds):
        waited.append(seconds)
        now[0] += seconds

    remote.time.sleep, remote.time.monotonic = sleep, lambda: now[0]
    victim(some_rows(200))
    assert world.faults.count == 20
    np.testing.assert_allclose(waited, [0.2] * 19, rtol=1e-6)


def test_waiting_times_grow_and_are_jittered(world, waited):
    world = world(every=lambda count: (503, {}))
    with pytest.raises(EndpointError, match="201 attempts"):
        world.victim(backoff=1.0, max_backoff=8.0, retries=200)(some_rows(1))
    assert len(waited) == 200
    for most, wait in zip((1, 2, 4, 8), waited, strict=False):
        assert 0 <= wait <= most
    # uniform in [0, 8]: the mean of 197 has a standard error of 0.165
    assert 3.3 < np.mean(waited[3:]) < 4.7
    assert min(waited[3:]) < 1 < 7 < max(waited[3:]) <= 8


def test_retry_after_as_a_date():
    assert _seconds("3") == 3
    assert _seconds(None) == _seconds("soon") == _seconds("-4") == 0
    for strange in (
        "\xb2",
        "\u0663",
        "1e3",
        "nan",
        "Mon, 01 Jan 0001 00:00:00 +9999",
        "Mon, 99 Jan 1 99:99:99 GMT",
        "0x1",
    ):
        assert _seconds(strange) == 0
    assert 55 < _seconds(email.utils.format_datetime(email.utils.localtime() + datetime.timedelta(seconds=60))) <= 60
    assert _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_what_is_refused_for_good_is_not_repeated(world):
    world = world(quota=4)
    ledger = Ledger()
    ask = Metered(world.victim(), ledger)
    ask(some_rows(3))
    with pytest.raises(EndpointError, match="2 rows asked, 3 of 4 used") as caught:
        ask(some_rows(2, 1))
    assert not isinstance(caught.value, UnknownOutcomeError)
    assert world.faults.count == 2
    assert ledger.spent == 3
    ask(some_rows(3))


@pytest.mark.parametrize("fault", ["cut", "slow", (500, {})], ids=str)
def test_what_stays_unknown_is_recorded_and_settled_later(world, fault):
    world = world({2: fault, 3: fault})
    ledger, rows = Ledger(budget=6), some_rows(6)
    ask = Metered(world.victim(batch=2, retries=1, concurrency=1, timeout=0.3), ledger)
    with pytest.raises(UnknownOutcomeError, match="2 attempts"):
        ask(rows)
    assert (ledger.counts()["rows"], ledger.counts()["unknown_rows"]) == (2, 2)
    assert world.charged <= ledger.spent
    np.testing.assert_array_equal(ask(rows), probabilities(rows))  # within a budget that has no row to spare
    assert (ledger.counts()["rows"], ledger.counts()["unknown_rows"], world.charged) == (6, 0, 6)


@pytest.mark.parametrize("fault", ["cut", (500, {}), (504, {"Retry-After": "1"})], ids=str)
def test_without_idempotency_nothing_unsure_is_repeated(world, fault):
    world = world({1: (503, {}), 3: fault})
    ledger, rows = Ledger(budget=6), some_rows(4)
    victim = world.victim(batch=2, concurrency=1)
    victim.repeatable = False
    ask = Metered(victim, ledger)
    with pytest.raises(UnknownOutcomeError, match="1 attempt at"):
        ask(rows)
    assert world.faults.count == 3  # the 503 was repeated, the other was not
    np.testing.assert_array_equal(ask(rows), probabilities(rows))
    assert (ledger.counts()["rows"], ledger.counts()["unknown_rows"], ledger.spent) == (4, 2, 6)


BAD = {
    "garbage": (b"\x93NUMPY garbage", "npy"),
    "html": (b"<html>login</html>", "npy"),
    "classes": (to_npy(np.full((2, 5), 0.2, np.float32)), r"2 rows of 3 classes"),
    "rows": (to_npy(np.full((1, 3), 1 / 3, np.float32)), r"2 rows of 3 classes"),
    "nan": (to_npy(np.full((2, 3), np.nan, np.float32)), "NaN"),
    "sums": (to_npy(np.full((2, 3), 0.9, np.float32)), "sum to 1"),
    "negative": (to_npy(np.array([[2, -1, 0]] * 2, np.float32)), "non-negative"),
    "huge": (to_npy(np.zeros((100, 1000), np.float64)), "longer than"),
    "cut short": (to_npy(np.full((2, 3), 1 / 3, np.float32))[:-1], "announces"),
}


@pytest.mark.parametrize("kind", BAD)
def test_answers_that_are_none_are_errors_and_the_ledger_stays_sound(world, kind):
    body, match = BAD[kind]
    world = world({2: body})
    ledger = Ledger(budget=4)
    ask = Metered(world.victim(retries=0), ledger)
    first, second = some_rows(2), some_rows(2, 1)
    ask(first)
    with pytest.raises(UnknownOutcomeError, match=match):
        ask(second)
    assert (ledger.counts()["unique_rows"], ledger.counts()["unknown_rows"]) == (2, 2)
    np.testing.assert_array_equal(ask(second), probabilities(second))
    np.testing.assert_array_equal(ask(first), probabilities(first))
    assert ledger.spent == 4


def test_what_was_answered_before_a_failure_is_kept(world):
    """Concurrent requests: one fails for good, the others' answers are stored, and nothing is asked twice."""
    world = world({3: (400, {})})
    ledger, rows = Ledger(budget=40), some_rows(40)
    ask = Metered(world.victim(batch=2, concurrency=3), ledger)
    with pytest.raises(EndpointError, match="status 400"):
        ask(rows)
    kept = ledger.counts()["rows"]
    assert 4 <= kept < 38
    assert kept == world.charged == ledger.spent
    np.testing.assert_array_equal(ask(rows), probabilities(rows))
    assert world.charged == ledger.spent == 40


def test_random_faults_from_all_sides(world):
    """Two hundred requests, every third of them spoiled in some way: both accounts agree to the row."""
    dice = random.Random(3)
    world = world(every=lambda count: dice.choice([*RETRIED, b"garbage"]) if dice.random() < 0.33 else None)
    ledger, rows = Ledger(budget=400), some_rows(400)
    ask = Metered(world.victim(batch=2, retries=8, concurrency=4), ledger)
    for _ in range(400):
        try:
            answers = ask(rows)
            break
        except UnknownOutcomeError:  # garbage ends a request; the next call sends it again as it was
            assert world.charged <= ledger.spent <= 400
    np.testing.assert_array_equal(answers, probabilities(rows))
    assert world.charged == ledger.spent == ledger.counts()["rows"] == 400


def test_the_budget_stops_before_the_wire(world):
    world = world()
    ledger = Ledger(budget=5)
    ask = Metered(world.victim(batch=2), ledger)
    with pytest.raises(BudgetError):
        ask(some_rows(6))
    assert world.faults.count == 0
    ask.evaluate(some_rows(50))
    assert (ledger.spent, ledger.counts()["evaluation_rows"]) == (0, 50)
    with pytest.raises(LedgerError, match="endpoint"):
        Metered(world.victim(), ledger, endpoint="elsewhere")


def test_endpoints_that_are_none(world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match="3 attempts"):
        RemoteVictim(f"http://127.0.0.1:{port}", retries=2, **FAST)
    with pytest.raises(EndpointError, match="404"):
        RemoteVictim(world().url + "/somewhere", **FAST)
    for wrong in ({"url": "ftp://x"}, {"concurrency": 0}, {"timeout": 0}, {"retries": -1}, {"batch": 0}):
        with pytest.raises(InputError):
            RemoteVictim(**{"url": "http://127.0.0.1:1", **wrong})


# ---- strangers

DESCRIPTION = {"input_shape": SHAPE, "num_classes": CLASSES, "reveal": {}, "limits": {}, "idempotency": True}
SAID = [
    "[]", "nonsense", "{}", "[" * 50_000, "9" * 5000,
    *(json.dumps({**DESCRIPTION, **changed}) for changed in (
        {"num_classes": "x"}, {"num_classes": float("inf")}, {"num_classes": float("nan")}, {"num_classes": 10**400},
        {"num_classes": 0}, {"num_classes": True}, {"num_classes": 2.5},
        {"reveal": {"kind": "secrets"}}, {"reveal": {"pickle": 1}}, {"reveal": [1]}, {"reveal": {"kind": []}},
        {"reveal": {"kind": "x" * 40_000}}, {"reveal": {"decimals": float("inf")}}, {"reveal": {"decimals": "2"}},
        {"reveal": {"kind": "top_k", "k": 1.5}}, {"reveal": {"kind": "top_k", "k": True}}, {"reveal": {"renormalise": "no"}},
        {"input_shape": [-4]}, {"input_shape": []}, {"input_shape": 4}, {"input_shape": "441"}, {"input_shape": [1] * 99},
        {"limits": [1]}, {"limits": "x"}, {"limits": {"max_rows": []}}, {"limits": {"max_rows": float("inf")}},
        {"limits": {"max_bytes": "x"}}, {"limits": {"rate": float("nan")}}, {"limits": {"rate": 0}}, {"limits": {"rate": "1"}},
        {"box": [float("nan"), 1]}, {"box": [1, 0]}, {"box": [0]}, {"box": [0, float("inf")]}, {"box": 1}, {"box": [0, 1, 2]},
        {"dtype": "object"}, {"dtype": ["float32"]}, {"\x1b[2J": 1, "reveal": {"\x1b[2J": 1}}, {"reveal": {"kind": "\x1b[2J"}},
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def stranger():
    """(URL, what it answers with: status, headers, and a body or an iterator of its pieces; what it was asked)."""
    answer, asked = [200, [], b""], []

    async def app(scope, receive, send):
        if scope["path"].endswith("describe") and answer[3:]:
            status, headers, body = 200, [], json.dumps(answer[3]).encode()
        else:
            status, headers, body = answer[:3]
        asked.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": body})
            return
        async for piece in body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    with background(app) as url:
        yield url, answer, asked


def test_descriptions_of_strangers_are_checked(stranger):
    url, answer, _ = stranger
    for said in SAID:
        answer[:] = 200, [], said.encode()
        with pytest.raises(EndpointError, match="describe") as caught:
            RemoteVictim(url, retries=0, **FAST)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000
    answer[:] = 200, [], json.dumps(DESCRIPTION).encode()
    RemoteVictim(url, **FAST).close()


@pytest.mark.parametrize("layers", [1, 2])
def test_packed_answers_are_not_unpacked(stranger, layers):
    """30 KB, or 150 bytes, that unpack to 32 MB: nothing packed is asked for, and nothing is unpacked."""
    url, answer, asked = stranger
    body = bytes(32 * 2**20)
    for _ in range(layers):
        body = gzip.compress(body)
    answer[:] = 200, [(b"content-encoding", b", ".join([b"gzip"] * layers))], body, DESCRIPTION
    with RemoteVictim(url, retries=0, **FAST) as victim:
        tracemalloc.start()
        try:
            with pytest.raises(UnknownOutcomeError, match="packed"):
                victim(some_rows(2))
            assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        finally:
            tracemalloc.stop()
    assert asked[-1][b"accept-encoding"] == b"identity"


@pytest.mark.parametrize("part", ["headers", "body"])
def test_one_deadline_stands_over_a_whole_request(part):
    """Four hundred pieces, one every 20 ms: each comes in time, and the whole does not; the client leaves."""
    sent = []
    head = b"HTTP/1.1 200 OK\r\n" + (b"" if part == "headers" else b"Content-Length: 400\r\n\r\n")
    said = json.dumps(DESCRIPTION).encode()
    whole = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(said) + said

    def serve():
        for dripping in (False, True):
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(65_536)
                connection.sendall(head if dripping else whole)
                for _ in range(400 * dripping):
                    time.sleep(0.02)
                    connection.sendall(b"x")
                    sent.append(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            RemoteVictim(url, retries=0, timeout=0.5) as victim,
            pytest.raises(UnknownOutcomeError, match="no whole answer"),
        ):
            victim(some_rows(2))
        thread.join(20)
    assert 0 < len(sent) < 400


def test_a_pace_beyond_patience_is_refused_before_anything_is_sent(stranger, waited):
    url, answer, asked = stranger
    right = to_npy(probabilities(some_rows(2)))
    answer[:] = 200, [], right, {**DESCRIPTION, "limits": {"rate": 0.001}}
    with RemoteVictim(url, **FAST) as victim:
        ledger = Ledger(budget=9)
        ask = Metered(victim, ledger)
        ask(some_rows(2))
        before = len(asked)
        for seed in (1, 2):  # a refused request takes no place in the row
            with pytest.raises(EndpointError, match=r"0.001 rows a second.* must wait 2000 s, more than max_wait=300"):
                ask(some_rows(2, seed))
    assert len(asked) == before
    assert not waited
    assert ledger.spent == 2
    with RemoteVictim(url, max_wait=2500, **FAST) as victim:
        victim(some_rows(2))
        victim(some_rows(2))
    np.testing.assert_allclose(waited, [2000], atol=1)


def test_obeying_never_takes_longer_than_max_wait(world, waited):
    """Waiting times of their own come on top of Retry-After only as far as patience reaches."""
    world = world({1: (503, {}), 2: (503, {})}, every=lambda count: (429, {"Retry-After": "1"}))
    victim = world.victim(backoff=20.0, max_backoff=40.0, max_wait=5)
    for seed in range(10):
        waited.clear()
        world.faults.count = 0
        with pytest.raises(EndpointError, match="more than max_wait=5"):
            victim(some_rows(1, seed))
        assert len(waited) > 2  # the first two are not on the endpoint's word
        assert min(waited[2:]) >= 1
        assert sum(waited[2:]) <= 5


def test_random_numbers_of_others_are_left_alone(world, waited):
    world = world({1: (503, {}), 2: (503, {})})
    before = random.getstate()
    world.victim()(some_rows(1))
    assert len(waited) == 2
    assert random.getstate() == before


def test_what_a_stranger_says_cannot_steer_a_terminal(stranger):
    url, answer, _ = stranger
    evil = "\x1b]0;owned\x07\x1b[2J\r\nnothing counts \x9b31m \u202etxt\x00\ud800 gr\xfcn"
    for body in (json.dumps({"error": {"message": evil}}).encode(), evil.encode("utf-8", "surrogatepass"), b"\xff\x1b"):
        answer[:] = 400, [], body, DESCRIPTION
        with RemoteVictim(url, **FAST) as victim, pytest.raises(EndpointError) as caught:
            victim(some_rows(1))
        assert str(caught.value).isprintable()
        assert "\\x1b" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [np.full((2, 3), 3e38, np.float32), np.full((2, 3), 6e4, np.float16), np.full((2, 3), 1e308), np.full((2, 3), -3e38, ">f4")],
    ids=str,
)  # fmt: skip
def test_sums_beyond_the_type_are_no_answers(stranger, values):
    """Warnings are errors in tests: none escapes."""
    url, answer, _ = stranger
    answer[:] = 200, [], to_npy(values), DESCRIPTION
    with RemoteVictim(url, retries=0, **FAST) as victim, pytest.raises(UnknownOutcomeError, match="sum to 1"):
        victim(some_rows(2))


def test_a_fork_makes_a_victim_of_its_own(world):
    """It has no event loop, and waiting for one would never end."""
    victim = world().victim()
    process, victim._process = victim._process, -1
    with pytest.raises(InputError, match="in a fork"):
        victim(some_rows(1))
    victim._process = process
    victim(some_rows(1))


def test_cookies_are_not_kept(stranger):
    url, answer, asked = stranger
    answer[:] = 200, [(b"set-cookie", b"a=b; path=/")], to_npy(probabilities(some_rows(2))), DESCRIPTION
    with RemoteVictim(url, **FAST) as victim:
        victim(some_rows(2))
        victim(some_rows(2))
    assert not any(b"cookie" in headers for headers in asked)


def test_answers_are_as_long_as_is_taken(stranger):
    """Requests are kept small enough; a row whose answer alone is too long is not asked at all."""
    url, answer, _ = stranger
    answer[:] = 200, [], b"", {**DESCRIPTION, "num_classes": 1000, "limits": {"max_rows": 500}}
    with RemoteVictim(url, max_answer=65_536 + 20 * 8000, **FAST) as victim:
        assert victim.batch == victim.max_rows == 20
    answer[3]["num_classes"] = 2**31
    with pytest.raises(EndpointError, match="more than max_answer"):
        RemoteVictim(url, **FAST)


# ---- processes that are killed

ASKER = textwrap.dedent(
    """
    import sys
    import numpy as np
    from dfke_jax.oracle import Ledger, Metered, RemoteVictim

    url, path, budget, out = sys.argv[1:]
    victim = RemoteVictim(url, batch=4, concurrency=3, backoff=0.01, retries=8, timeout=5.0)
    ledger = Ledger(path, budget=int(budget), config="kill")
    ask = Metered(victim, ledger, endpoint="victim")
    print("ready", flush=True)
    state, answers = np.float32(0.5), []
    for step in range(12):  # what is asked depends on what was answered
        rows = np.random.default_rng(step).random((20, 4, 4, 1)).astype(np.float32) * state
        rows[7] = rows[3]
        answers.append(ask(rows))
        state = np.float32(0.2 + 0.8 * answers[-1][:, 0].mean())
    np.save(out, np.concatenate(answers))
    """
)
ASKED = 12 * 19


def start(world, path, out):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", ASKER, world.url, str(path), str(ASKED), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def kill_and_resume(world, tmp_path, times, seed):
    dice = random.Random(seed)

    def predict(rows):
        time.sleep(0.006)
        return probabilities(rows)

    def made():
        return world(
            predict=predict,
            every=lambda count: dice.choice(["cut", (503, {}), (500, {})]) if dice.random() < 0.1 else None,
        )

    undisturbed = made()
    finish(start(undisturbed, tmp_path / "whole", tmp_path / "whole.npy"))
    assert undisturbed.charged == ASKED

    disturbed, path, midway = made(), tmp_path / "killed", 0
    for i in range(times):
        process = start(disturbed, path, tmp_path / "killed.npy")
        assert process.stdout.readline() == "ready\n"
        target = ASKED * (i + dice.random()) / times
        while disturbed.charged < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.05)  # what is under way arrives
        with Ledger(path, config="kill") as ledger:
            counts = ledger.counts()
            assert counts["rows"] <= disturbed.charged <= ledger.spent <= ASKED
            assert counts["rows"] == counts["unique_rows"]
            midway += 0 < counts["rows"] < ASKED
    finish(start(disturbed, path, tmp_path / "killed.npy"))
    assert midway >= times // 2  # else nothing was tested
    with Ledger(path, config="kill") as ledger:
        counts = ledger.counts()
    assert counts["rows"] == counts["unique_rows"] == disturbed.charged == ASKED
    assert counts["unknown_rows"] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "killed.npy"), np.load(tmp_path / "whole.npy"))


def test_killed_at_any_moment_it_pays_no_row_twice(world, tmp_path):
    kill_and_resume(world, tmp_path, 3, seed=1)


@pytest.mark.slow
def test_killed_twenty_times(world, tmp_path):
    kill_and_resume(world, tmp_path, 20, seed=2)
