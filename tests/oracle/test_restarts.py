"""Endpoints that are started anew: what they remember, what they forget, and that both sides' accounts say the same."""

import contextlib
import sqlite3

import httpx
import numpy as np
import pytest

from dfke_jax.core.errors import EndpointError, InputError, LedgerError, UnknownOutcomeError
from dfke_jax.oracle import Explained, Explanation, Ledger, Metered, RemoteVictim, Reveal, background, create_app
from dfke_jax.oracle.codec import from_npy, to_npy
from dfke_jax.oracle.journal import Journal
from dfke_jax.oracle.ledger import LedgerWarning

SHAPE, CLASSES = (4, 4, 1), 3
WEIGHTS = np.random.default_rng(5).normal(size=(16, CLASSES))
FAST = {"backoff": 0.01, "max_backoff": 0.02, "timeout": 5.0}


def probabilities(rows, weights=WEIGHTS):
    odds = np.exp(rows.reshape(len(rows), -1).astype(np.float64) @ weights)
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def some_rows(count, seed=0):
    return np.random.default_rng(seed).random((count, *SHAPE)).astype(np.float32)


class Endpoint:
    """One address behind which a server runs, is started anew, and loses answers.

    Attributes:
      charged: rows that all its servers together have charged. lose: answers that get lost on the way from now on.
    """

    def __init__(self, stack, journal=None, **options):
        self.stack, self.path, self.options = stack, journal, options
        self.port = self.lose = self.before = 0
        self.app = None
        self.running = contextlib.ExitStack()
        stack.callback(self.stop)
        self.start()

    def start(self, predict=probabilities, **options):
        options = {"input_shape": SHAPE, "reveal": Reveal(), "num_classes": CLASSES, **self.options, **options}
        journal = None if self.path is None else Journal(self.path)
        if journal is not None:
            self.running.callback(journal.close)
        self.app = create_app(predict, journal=journal, **options)
        self.started = sum(self.app.state.service.accounts.charged.values())
        self.url = self.running.enter_context(background(self, port=self.port))
        self.port = int(self.url.rpartition(":")[2])

    def stop(self):
        if self.app is not None:
            self.before, self.app = self.charged, None
        self.running.close()

    def restart(self, *args, **options):
        self.stop()
        self.start(*args, **options)

    @property
    def charged(self):
        return self.before + sum(self.app.state.service.accounts.charged.values()) - self.started

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] == "/v1/describe" or not self.lose:
            return await self.app(scope, receive, send)
        self.lose -= 1

        async def swallow(message):
            pass

        await self.app(scope, receive, swallow)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})

    def victim(self, **options):
        victim = RemoteVictim(self.url, **{**FAST, "concurrency": 1, **options})
        self.stack.callback(victim.close)
        return victim


@pytest.fixture
def endpoint():
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: Endpoint(stack, *args, **options)


def test_every_start_is_an_instance_of_its_own(endpoint):
    endpoint = endpoint()
    first = httpx.get(f"{endpoint.url}/v1/describe").json()["instance"]
    assert httpx.get(f"{endpoint.url}/v1/describe").json()["instance"] == first
    endpoint.restart()
    assert httpx.get(f"{endpoint.url}/v1/describe").json()["instance"] != first


def test_a_request_for_another_instance_is_refused_and_not_charged(endpoint, tmp_path):
    for path, code in ((None, "other_instance"), (tmp_path / "j", "not_answered")):
        here = endpoint(path)
        body = to_npy(some_rows(2))
        headers = {"Content-Type": "application/x-npy"}

        def post(instance, name=None, here=here, headers=headers, body=body):
            named = {"Endpoint-Instance": instance, **({"Idempotency-Key": name} if name else {})}
            return httpx.post(f"{here.url}/v1/predict", headers={**headers, **named}, content=body)

        old = httpx.get(f"{here.url}/v1/describe").json()["instance"]
        assert post(old, "a").status_code == post(old).status_code == 200
        assert here.charged == 4
        here.restart()
        for name in ("b", None):
            said = post(old, name)
            assert (said.status_code, said.json()["error"]["code"]) == (412, code)
        assert post("never", "c").json()["error"]["code"] == "other_instance"
        again = post(old, "a")
        if path is None:
            assert again.status_code == 412
        else:  # what was answered is answered, for nothing
            assert again.status_code == 200
            assert again.headers["idempotent-replayed"] == "true"
            np.testing.assert_array_equal(from_npy(again.content), probabilities(some_rows(2)))
            other = {**headers, "Idempotency-Key": "a"}
            assert httpx.post(f"{here.url}/v1/predict", headers=other, content=to_npy(some_rows(1))).status_code == 422
        assert here.charged == 4


@pytest.mark.parametrize("remembers", [True, False])
def test_rows_under_way_when_both_sides_were_killed_are_counted_as_often_as_paid(endpoint, tmp_path, remembers):
    """A run of 40 rows loses the answers to 8, the endpoint is started anew, and the run goes on from its ledger."""
    here = endpoint(tmp_path / "j" if remembers else None)
    rows = some_rows(40)
    with Ledger(tmp_path / "l", budget=60) as ledger:
        ask = Metered(here.victim(batch=8, retries=0), ledger, "victim")
        ask(rows[:16])
        here.lose = 1
        with pytest.raises(UnknownOutcomeError):
            ask(rows)
        assert (here.charged, ledger.spent, ledger.counts()["unknown_rows"]) == (24, 24, 8)
    here.restart()
    with Ledger(tmp_path / "l", budget=60) as ledger:
        ask = Metered(here.victim(batch=8, retries=0), ledger, "victim")
        said = pytest.warns(LedgerWarning, match="8 rows that were under way count as asked for good")
        with contextlib.nullcontext() if remembers else said:
            np.testing.assert_array_equal(ask(rows), probabilities(rows))
        counts = ledger.counts()
        assert here.charged == ledger.spent == (44 if remembers else 52)  # 40, 4 to compare, and 8 that are lost
        assert counts["unknown_rows"] == (0 if remembers else 8)
        assert counts["unique_rows"] == 40
        np.testing.assert_array_equal(ask(rows), probabilities(rows))
        assert here.charged == ledger.spent


def test_what_the_next_instance_has_not_answered_is_asked_of_it_once(endpoint, tmp_path):
    """A request that the endpoint never got to: its journal knows, and the rows cost what rows cost."""
    here = endpoint(tmp_path / "j")
    rows = some_rows(12)
    with Ledger(tmp_path / "l", budget=12) as ledger:
        victim = here.victim(batch=4, retries=0)
        ask = Metered(victim, ledger, "victim", samples=0)
        ask(rows[:4])
        here.stop()
        victim._exchange = lambda *args: (_ for _ in ()).throw(UnknownOutcomeError("the cable"))
        with pytest.raises(UnknownOutcomeError):
            ask(rows[:8])
        assert ledger.counts()["unknown_rows"] == 4
    here.start()
    with Ledger(tmp_path / "l", budget=12) as ledger:
        ask = Metered(here.victim(batch=4), ledger, "victim", samples=0)
        np.testing.assert_array_equal(ask(rows), probabilities(rows))
        assert here.charged == ledger.spent == ledger.counts()["rows"] == 12


@pytest.mark.parametrize("remembers", [True, False])
def test_a_restart_between_two_requests_is_passed_over(endpoint, tmp_path, remembers):
    here = endpoint(tmp_path / "j" if remembers else None)
    rows = some_rows(30)
    victim = here.victim(batch=5, concurrency=3)
    with Ledger(budget=34) as ledger:
        ask = Metered(victim, ledger)
        ask(rows[:10])
        here.restart()
        np.testing.assert_array_equal(ask(rows), probabilities(rows))
        assert here.charged == ledger.spent == ledger.counts()["rows"] == 34  # four were asked again
        assert ledger.instance == victim.instance == here.app.state.service.instance
        here.restart()
        np.testing.assert_array_equal(ask.evaluate(rows[:7]), probabilities(rows[:7]))
        here.restart()
        np.testing.assert_array_equal(victim(rows[:7]), probabilities(rows[:7]))


@pytest.mark.parametrize("remembers", [True, False])
def test_a_restart_between_an_attempt_and_its_repetition(endpoint, tmp_path, remembers, monkeypatch):
    """The answer is lost, and before the client tries again the endpoint is another instance."""
    here = endpoint(tmp_path / "j" if remembers else None)
    rows, slept = some_rows(9), []
    victim = here.victim(batch=3)

    def restart(seconds):
        slept.append(seconds)
        if len(slept) == 1:
            here.restart()

    monkeypatch.setattr("dfke_jax.oracle.remote.time.sleep", restart)
    with Ledger(budget=12) as ledger:
        ask = Metered(victim, ledger, samples=0)
        ask(rows[:3])
        here.lose = 1
        if remembers:
            np.testing.assert_array_equal(ask(rows), probabilities(rows))
            assert here.charged == ledger.spent == 9
        else:
            with pytest.raises(UnknownOutcomeError, match=r"not known whether they count.*started anew"):
                ask(rows)
            assert here.charged == ledger.spent == 6
            with pytest.warns(LedgerWarning, match="3 rows"):
                np.testing.assert_array_equal(ask(rows), probabilities(rows))
            assert here.charged == ledger.spent == 12


@pytest.mark.parametrize("kind", ["probabilities", "label"])
def test_another_model_at_the_same_address_is_noticed(endpoint, tmp_path, kind):
    reveal = Reveal(kind)
    answers = (lambda p: p.argmax(1)) if kind == "label" else (lambda p: p)
    old, new = (lambda rows, w=w: answers(probabilities(rows, w)) for w in (WEIGHTS, np.roll(WEIGHTS, 1, 1)))
    here = endpoint(reveal=reveal)
    here.restart(old)
    rows = some_rows(20)
    with Ledger(tmp_path / "l", budget=40) as ledger:
        ask = Metered(here.victim(), ledger, "victim")
        ask(rows[:10])
        here.restart(new)
        np.testing.assert_array_equal(ask(rows[:10]), old(rows[:10]))
        with pytest.raises(LedgerError, match=r"answers [1-4] of 4 rows otherwise.*another model"):
            ask(rows)
        assert (ledger.spent, ledger.counts()["unique_rows"]) == (14, 10)  # asking was paid; nothing new was
    for _ in range(2):  # whoever opens it is told
        with Ledger(tmp_path / "l", budget=40) as ledger, pytest.raises(LedgerError, match="another model"):
            Metered(here.victim(), ledger, "victim")(rows)
    here.restart(old)
    with Ledger(tmp_path / "l", budget=40) as ledger:
        np.testing.assert_array_equal(Metered(here.victim(), ledger, "victim")(rows), old(rows))
        assert ledger.spent == 10 + 4 * 4 + 10


@pytest.mark.parametrize("room", [True, False])
def test_a_change_in_the_midst_of_concurrent_requests(endpoint, room):
    """The first to meet the other instance asks the samples, once; nobody stores an answer of the other model."""
    here = endpoint()
    rows, calls = some_rows(60), []

    def other(rows):
        calls.append(len(rows))
        return probabilities(rows, np.roll(WEIGHTS, 1, 1))

    with Ledger(budget=64 if room else 60) as ledger:
        ask = Metered(here.victim(batch=2, concurrency=4), ledger)
        ask(rows[:30])
        here.restart(other if room else probabilities)
        if room:
            for _ in range(2):
                with pytest.raises(LedgerError, match="4 of 4 rows otherwise"):
                    ask(rows)
            assert calls == [2, 2]
            assert (ledger.spent, ledger.counts()["unique_rows"]) == (34, 30)
        else:  # one word, and every row
            with pytest.warns(LedgerWarning, match="4 more, to see whether") as said:
                np.testing.assert_array_equal(ask(rows), probabilities(rows))
            assert len(said) == 1
            assert ledger.spent == here.charged == 60


def test_an_endpoint_that_became_another_kind_is_refused(endpoint):
    here = endpoint()
    ledger = Ledger()
    ask = Metered(here.victim(), ledger)
    ask(some_rows(2))
    here.restart(num_classes=4)
    with pytest.raises(EndpointError, match="started anew and is another one"):
        ask(some_rows(4))
    assert ledger.spent == 2


@pytest.mark.parametrize("instance", ["", "a b", "x" * 65, "a\r\nb", {"a": 1}])
def test_instances_of_strangers_are_checked(endpoint, instance):
    here = endpoint()
    here.app.state.service.instance = instance
    with pytest.raises(EndpointError, match="not the description"):
        here.victim()


def test_endpoints_that_name_no_instance_are_compared_on_opening(endpoint, tmp_path):
    here = endpoint()
    here.app.state.service.instance = None
    rows = some_rows(12)
    for part, spent in ((rows[:4], 4), (rows[:4], 4), (rows[:8], 12), (rows, 20)):
        with Ledger(tmp_path / "l") as ledger:
            Metered(here.victim(), ledger, "victim")(part)
            assert ledger.spent == here.charged == spent
    with Ledger(tmp_path / "l") as ledger:
        ask = Metered(here.victim(), ledger, "victim")
        ask(some_rows(2, 1))
        ask(some_rows(2, 2))  # once for every opening
        assert ledger.spent == here.charged == 28


# ---- the journal


def test_charges_and_quotas_outlive_the_process(endpoint, tmp_path):
    keys = ["one", "two"]
    here = endpoint(tmp_path / "j", keys=keys, quota=10)
    first, second = (here.victim(key=key) for key in keys)
    first(some_rows(6))
    second(some_rows(3))
    here.restart()
    usage = [here.victim(key=key).usage() for key in keys]
    assert [said["rows"] for said in usage] == [6, 3]
    assert [said["requests"] for said in usage] == [1, 1]
    with pytest.raises(EndpointError, match="5 rows asked, 6 of 10 used"):
        here.victim(key="one")(some_rows(5))
    here.victim(key="two")(some_rows(5))


def test_explained_rows_outlive_the_process(endpoint, tmp_path):
    explain = lambda rows: Explained(probabilities(rows), np.repeat(rows[:, None], CLASSES, 1))
    here = endpoint(tmp_path / "j", explain=explain, explanation=Explanation("gradient"))
    rows = some_rows(3)
    body, headers = to_npy(rows), {"Content-Type": "application/x-npy", "Idempotency-Key": "e"}
    before = httpx.post(f"{here.url}/v1/explain", content=body, headers=headers)
    assert before.status_code == 200
    here.restart()
    after = httpx.post(f"{here.url}/v1/explain", content=body, headers=headers)
    assert after.content == before.content
    assert httpx.get(f"{here.url}/v1/usage").json() == {
        "rows": 3, "requests": 1, "quota": None, "explanation_rows": 3, "explanation_quota": None,
    }  # fmt: skip


def test_a_request_that_cannot_be_entered_is_not_answered(endpoint, tmp_path):
    here = endpoint(tmp_path / "j")
    here.app.state.service.journal.close()
    said = httpx.post(
        f"{here.url}/v1/predict", content=to_npy(some_rows(2)), headers={"Content-Type": "application/x-npy"}
    )
    assert said.status_code == 500
    assert here.charged == 0


def test_a_journal_is_one_endpoints_alone(tmp_path):
    with contextlib.closing(Journal(tmp_path / "j")), pytest.raises(InputError, match="in use"):
        Journal(tmp_path / "j", timeout=0.05)
    Journal(tmp_path / "j").close()
    (tmp_path / "text").write_bytes(b"no database" * 100)
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    Ledger(tmp_path / "ledger").close()
    for name in ("text", "other", "ledger", "no/such/folder"):
        with pytest.raises(InputError, match="journal"):
            Journal(tmp_path / name)
