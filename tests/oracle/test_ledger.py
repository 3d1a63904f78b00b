"""The ledger's accounts against a plain recount, and a cache that nothing but the same row finds."""

import io
import json
import sqlite3
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from sklearn.dummy import DummyClassifier

from dfke_jax.core.errors import BudgetError, DfkeError, EndpointError, InputError, LedgerError, UnknownOutcomeError
from dfke_jax.core.method import Attack, against
from dfke_jax.oracle import (
    Ledger,
    Metered,
    Reveal,
    check_spent,
    explanation_oracle,
    from_function,
    oracle_for,
    rows_per_step,
)
from dfke_jax.oracle.codec import decode_answers, encode_answers, from_npy, row_keys, to_npy
from dfke_jax.oracle.ledger import LedgerWarning

LABEL = Reveal("label")


def pixel_rows(values):
    """One row (1, 1, 1) for every value."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1, 1)


class Counting:
    """Answers rows with two logits computed from their sum, and keeps what it was asked."""

    def __init__(self, fail=()):
        self.asked, self.calls, self.fail = [], 0, dict(fail)

    def __call__(self, rows):
        self.calls += 1
        error = self.fail.get(self.calls)
        if error is not None:
            raise error
        self.asked += [row.tobytes() for row in rows]
        total = rows.reshape(len(rows), -1).astype(np.float64).sum(1)
        return np.stack([np.sin(total), np.cos(total)], 1).astype(np.float32)


def expected(rows):
    return Counting()(rows)


def metered(ledger, oracle=None, **options):
    return Metered(oracle or Counting(), ledger, "test", Reveal("logits"), **options)


def test_a_row_is_paid_once_and_answered_in_order():
    ledger, oracle = Ledger(budget=10), Counting()
    ask = metered(ledger, oracle, num_classes=2)
    first, second = pixel_rows([1, 2, 1, 3]), pixel_rows([3, 4, 2, 2])
    np.testing.assert_array_equal(ask(first), expected(first))
    np.testing.assert_array_equal(ask(second), expected(second))
    assert len(oracle.asked) == len(set(oracle.asked)) == 4
    assert ledger.counts() == {
        "budget": 10,
        "rows": 4,
        "unique_rows": 4,
        "unknown_rows": 0,
        "requests": 2,
        "explanation_rows": 0,
        "cache_hits": 4,
        "evaluation_rows": 0,
    }
    assert (ledger.spent, ledger.remaining) == (4, 6)


def test_the_budget_is_checked_before_anything_is_sent():
    ledger, oracle = Ledger(budget=5), Counting()
    ask = metered(ledger, oracle, batch=2)
    ask(pixel_rows([1, 2, 3]))
    with pytest.raises(BudgetError, match="3 rows asked, 3 of a budget of 5 spent, 2 left") as caught:
        ask(pixel_rows([4, 5, 6, 1]))
    assert (caught.value.asked, caught.value.spent, caught.value.budget) == (3, 3, 5)
    assert isinstance(caught.value, DfkeError)
    assert len(oracle.asked) == 3
    ask(pixel_rows([4, 5, 1]))
    ask(pixel_rows([5, 4, 3, 2, 1]))  # what was paid stays available
    assert ledger.spent == 5


@settings(max_examples=60, deadline=None)
@given(
    budget=st.one_of(st.none(), st.integers(0, 12)),
    batch=st.one_of(st.none(), st.integers(1, 4)),
    repeatable=st.booleans(),
    calls=st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from(["fine", "lost", "refused", "broken"])
        ),
        max_size=8,
    ),
)
def test_whatever_happens_the_accounts_add_up(budget, batch, repeatable, calls):
    """Against a recount: rows that the victim saw, and rows of requests that were lost on the way."""
    ledger, seen, kept = Ledger(budget=budget), [], set()
    errors = {"lost": UnknownOutcomeError("?"), "refused": EndpointError("no"), "broken": OSError("cable")}

    paid = {}  # what an endpoint that knows repeated requests charges

    class Victim:
        fate = "fine"

        def request(self, rows, key):
            if self.fate != "refused":  # answered, and sometimes the answer gets lost
                seen.extend(float(row[0, 0, 0]) for row in rows)
                paid[key] = len(rows)
            if self.fate != "fine":
                raise errors[self.fate]
            return expected(rows)

    victim = Victim()
    ask = metered(ledger, victim, batch=batch, repeatable=repeatable)
    for values, victim.fate in calls:
        before = len(seen)
        rows = pixel_rows(values)
        try:
            answers = ask(rows)
        except BudgetError:
            assert len(seen) == before
        except (EndpointError, OSError):
            assert victim.fate != "fine"
        else:
            np.testing.assert_array_equal(answers, expected(rows))
            kept |= set(values)
        counts = ledger.counts()
        assert budget is None or ledger.spent <= budget
        assert ledger.spent == counts["rows"] + counts["unknown_rows"]
        assert counts["unknown_rows"] == sum(len(keys) for _, keys in ledger.open_requests())
        assert kept <= set(seen)
        assert ledger.spent == (sum(paid.values()) if repeatable else len(seen))
        assert counts["unique_rows"] == counts["rows"]


def test_only_the_same_row_is_found():
    """Every row that differs in a bit, a type, a shape, the endpoint or what is revealed has a key of its own."""
    row = np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3, 1)
    keys = {row_keys(row, "a", "label")[0]}
    assert row_keys(row.copy(), "a", "label")[0] in keys
    assert row_keys(np.asfortranarray(row), "a", "label")[0] in keys
    assert row_keys(row.astype(">f4"), "a", "label")[0] in keys
    others = [
        row_keys(row.reshape(1, 3, 2, 1), "a", "label"),
        row_keys(row.reshape(1, 6), "a", "label"),
        row_keys(row.astype(np.float64), "a", "label"),
        row_keys(row.astype(np.float16), "a", "label"),
        row_keys(np.ascontiguousarray(row).view(np.uint8).reshape(1, 2, 3, 4), "a", "label"),
        row_keys(row, "b", "label"),
        row_keys(row, "a", "logits"),
        row_keys(-row, "a", "label"),
    ]
    for bit in range(32):
        bits = row.view(np.uint32).copy()
        bits[0, 0, 2, 0] ^= np.uint32(1 << bit)
        assert np.isfinite(bits.view(np.float32)).all()
        others.append(row_keys(bits.view(np.float32), "a", "label"))
    others = [key[0] for key in others]
    assert len({*keys, *others}) == 1 + len(others)


def test_negative_zero_and_zero_are_different_rows():
    ledger = Ledger()
    metered(ledger)(np.stack([pixel_rows([0.0])[0], pixel_rows([-0.0])[0]]))
    assert ledger.counts()["rows"] == 2


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.zeros((0, 2, 2, 1), np.float32), "B >= 1"),
        (np.zeros(3, np.float32), "B >= 1"),
        (np.zeros((1, 2), np.int32), "one of float16"),
        (np.array([[1.0, np.nan], [0, 0]], np.float32), "1 of 2 rows contain NaN"),
    ],
)
def test_rows_that_cannot_be_sent_are_refused(rows, match):
    ledger, oracle = Ledger(), Counting()
    with pytest.raises(InputError, match=match):
        metered(ledger, oracle)(rows)
    assert oracle.calls == 0
    assert ledger.spent == 0


@pytest.mark.parametrize(
    "answers",
    [
        np.arange(6, dtype=np.int32),
        np.linspace(0, 1, 12, dtype=np.float64).reshape(6, 2),
        (np.ones((6, 3), np.float32), np.full((6, 2, 2, 1, 3), 0.1, np.float16)),
        {"probabilities": np.ones((6, 3), np.float32), "gradient": np.zeros((6, 4), ">f8")},
        np.zeros((6, 0), np.float32),
    ],
)
def test_answers_survive_as_bytes(answers):
    layout, rows = encode_answers(answers, 6)
    back = decode_answers([(layout, row) for row in rows])
    assert jax.tree.structure(back) == jax.tree.structure(answers)
    for here, there in zip(jax.tree.leaves(back), jax.tree.leaves(answers), strict=True):
        assert here.dtype == there.dtype.newbyteorder("=")
        np.testing.assert_array_equal(here, there)


def test_answers_of_strange_kinds_are_refused():
    with pytest.raises(InputError, match="5 rows were asked"):
        encode_answers(np.ones((4, 2)), 5)
    with pytest.raises(InputError, match="arrays of numbers"):
        encode_answers(np.array(["a", "b"]), 2)
    with pytest.raises(InputError, match="arrays of numbers"):
        encode_answers(np.array([None, 1], object), 2)
    with pytest.raises(LedgerError, match="different forms"):
        decode_answers([encode_answers(np.ones((1, d), np.float32), 1) and (f"[{d}]", b"") for d in (1, 2)])


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), np.float32), np.arange(5), np.asfortranarray(np.eye(3)), np.uint8(3)]
)
def test_npy_bodies(array):
    back = from_npy(to_npy(array))
    np.testing.assert_array_equal(back, array)
    assert np.load(io.BytesIO(to_npy(array))).dtype == back.dtype


def test_npy_bodies_of_strangers_are_refused():
    good = to_npy(np.zeros((2, 3), np.float32))
    huge = good.replace(b"(2, 3)", b"(2, 9)")
    negative = good.replace(b"(2, 3)", b"(-2,3)")
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    for body in (
        b"",
        b"junk",
        good[:-1],
        good + b"x",
        good[:20],
        huge,
        negative,
        objects.getvalue(),
        b"\x93NUMPY\x09\x00" + good[8:],
    ):
        with pytest.raises(InputError):
            from_npy(body)


# ---- files


def test_a_run_replays_from_its_file_to_the_same_bits(tmp_path):
    path, values = tmp_path / "run.ledger", np.random.default_rng(0).random((20, 3, 3, 1), np.float32)
    with Ledger(path, budget=20, config="c1") as ledger:
        first = metered(ledger)(values)
    victim = Counting()
    with Ledger(path, budget=20, config="c1") as ledger:
        again = metered(ledger, victim)(values)
        assert ledger.counts()["rows"] == 20
        assert ledger.remaining == 0
    assert victim.calls == 0
    assert again.dtype == first.dtype
    np.testing.assert_array_equal(again, first)


def test_an_attack_resumed_through_its_ledger_ends_in_the_same_state(tmp_path, getkey):
    """The loop is repeated from its first step; the victim is asked only what it was not asked before."""

    def tell(key, state, rows, answers):
        return state + jnp.sum(answers) * jnp.mean(rows), {}

    def ask(key, state):
        return state, jax.random.uniform(key, (4, 2, 2, 1)) + state

    attack = Attack(Partial(lambda key: jnp.zeros(())), Partial(ask), Partial(tell))
    key = getkey()

    def run(ledger, victim, steps):
        loop = against(attack, metered(ledger, victim), host=True)
        state = loop.init(key)
        for t in range(steps):
            state, _ = loop.step(jax.random.fold_in(key, t), state)
        return np.asarray(state)

    whole = run(Ledger(), Counting(), 6)
    run(Ledger(tmp_path / "l"), Counting(), 4)
    victim = Counting()
    resumed = run(Ledger(tmp_path / "l", budget=24), victim, 6)
    assert len(victim.asked) == 8
    np.testing.assert_array_equal(resumed, whole)


def test_another_endpoint_answer_or_configuration_is_refused(tmp_path):
    path = tmp_path / "l"
    with Ledger(path, config="a") as ledger:
        Metered(Counting(), ledger, "http://here", LABEL)
    with pytest.raises(LedgerError, match="config 'a' and this run's configuration is 'b'"):
        Ledger(path, config="b")
    with Ledger(path, config="a") as ledger:
        with pytest.raises(LedgerError, match="'http://here' and this endpoint is 'http://there'"):
            Metered(Counting(), ledger, "http://there", LABEL)
        with pytest.raises(LedgerError, match="this kind of answer"):
            Metered(Counting(), ledger, "http://here", Reveal("logits"))


def test_files_that_are_no_ledgers_are_refused_and_left_alone(tmp_path):
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_bytes(b"this is not a database, it is a sentence" * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    before = other.read_bytes()
    for path in (text, other, tmp_path / "no" / "such" / "folder"):
        with pytest.raises(LedgerError):
            Ledger(path)
    assert text.read_bytes().startswith(b"this is not")
    assert other.read_bytes() == before


def test_stored_answers_cannot_be_changed(tmp_path):
    path = tmp_path / "l"
    with Ledger(path) as ledger:
        metered(ledger)(pixel_rows([1, 2]))
    database = sqlite3.connect(path)
    for statement in ("UPDATE answers SET data = x'00'", "DELETE FROM answers"):
        with pytest.raises(sqlite3.DatabaseError, match="only added"):
            database.execute(statement)
    database.close()


def test_two_users_of_one_file_share_one_budget(tmp_path):
    """Threads with connections of their own: together they never pass the limit."""
    path, asked = tmp_path / "l", []
    Ledger(path).close()

    def work(offset):
        with Ledger(path, budget=37) as ledger:
            victim = Counting()
            ask = metered(ledger, victim, batch=2)
            for start in range(0, 30, 3):
                try:
                    ask(pixel_rows(np.arange(start, start + 3) + offset))
                except BudgetError:
                    break
            asked.append(len(victim.asked))

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Ledger(path) as ledger:
        assert ledger.counts()["rows"] == sum(asked) <= 37
        assert sum(asked) >= 33


def test_a_request_is_held_against_the_budget_when_it_is_entered():
    """The last check before the wire, for those who share a file with somebody faster."""
    ledger = Ledger(budget=3)
    keys = row_keys(pixel_rows([1, 2]), "test", "label")
    ledger.begin(keys)
    with pytest.raises(BudgetError):
        ledger.begin(keys)
    assert (ledger.spent, ledger.counts()["requests"], len(ledger.open_requests())) == (2, 1, 1)


def test_threads_that_ask_the_same_rows_pay_once():
    ledger, victim = Ledger(), Counting()

    def slow(rows):
        time.sleep(0.02)
        return victim(rows)

    ask, rows = metered(ledger, slow, batch=3), pixel_rows(range(8))
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(rows))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    for answer in answers:
        np.testing.assert_array_equal(answer, expected(rows))
    assert ledger.spent == len(victim.asked) == 8
    assert ledger.counts()["cache_hits"] == 24


def test_no_cursor_outlives_the_lock(monkeypatch):
    """A cursor that is freed resets its statement, and connections share statements: in another thread's hands that is
    ``bad parameter or other API misuse``."""
    outside, ledgers = [], []

    class Cursor(sqlite3.Cursor):
        def __del__(self):
            if ledgers and not ledgers[0]._lock._is_owned():
                outside.append(self)

    class Connection(sqlite3.Connection):
        def execute(self, *args):
            return self.cursor(Cursor).execute(*args)

        def executemany(self, *args):
            return self.cursor(Cursor).executemany(*args)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Connection, **options))
    keys = [bytes([i]) * 32 for i in range(3)]
    with Ledger() as ledger:
        ledgers.append(ledger)
        number = ledger.begin(keys)
        ledger.settle(number, keys, "layout", [b"answer"] * 3, phase="first")
        ledger.withdraw(ledger.begin(keys, single=True))
        ledger.keep_samples("kind", {keys[0]: ("layout", b"answer")})
        ledger.charge(5, block="block")
        ledger.hit(1, phase="first")
        ledger.meet("instance")
        reads = (ledger.counts(), ledger.phases(), ledger.lookup(keys), ledger.samples("kind"), ledger.open_requests())
        assert all(reads[:4])
        assert ledger.instance_of(number) == ""
        assert not outside
        ledgers.clear()


def test_two_processes_that_repeat_one_request_count_it_once(tmp_path):
    """One of them is refused and takes it out, the other gets its answer; in either order it is paid once."""
    layout, rows = encode_answers(np.ones((1, 2), np.float32), 1)
    for name, order in (("a", ["withdraw", "settle"]), ("b", ["settle", "withdraw"]), ("c", ["settle", "settle"])):
        with Ledger(tmp_path / name) as one, Ledger(tmp_path / name) as other:
            key = row_keys(pixel_rows([1]), "test", "label")
            number = one.begin(key)
            for ledger, what in zip((one, other), order, strict=True):
                if what == "settle":
                    ledger.settle(number, key, layout, rows)
                else:
                    ledger.withdraw(number)
            counts = one.counts()
            assert (counts["rows"], counts["unique_rows"], counts["unknown_rows"], counts["requests"]) == (1, 1, 0, 1)
            with pytest.raises(LedgerError, match="no request 99"):
                one.withdraw(99)


# ---- what becomes of requests that fail


def test_a_certain_failure_costs_nothing_and_a_lost_answer_does():
    ledger = Ledger(budget=4)
    victim = Counting(fail={1: EndpointError("refused"), 2: UnknownOutcomeError("lost"), 4: ValueError("broken")})
    ask = metered(ledger, victim)
    with pytest.raises(EndpointError):
        ask(pixel_rows([1]))
    assert (ledger.spent, ledger.counts()["requests"]) == (0, 0)
    with pytest.raises(UnknownOutcomeError):
        ask(pixel_rows([1]))
    assert (ledger.spent, ledger.counts()["unknown_rows"]) == (1, 1)
    ask(pixel_rows([1]))  # paid again: the endpoint does not know repeated requests
    assert (ledger.spent, ledger.counts()["rows"]) == (2, 1)
    with pytest.raises(ValueError, match="broken"):
        ask(pixel_rows([2]))
    assert ledger.spent == 3
    with pytest.raises(BudgetError, match="2 of unknown outcome"):
        ask(pixel_rows([2, 3]))


def test_a_repeatable_request_is_sent_again_as_it_was():
    """The rows of a lost request go out together and once, whatever they are asked with; the rest is new."""
    parts, names = [], []

    class Victim(Counting):
        endpoint, repeatable, batch = "test", True, 2

        def request(self, rows, key):
            parts.append([int(row[0, 0, 0]) for row in rows])
            names.append(key)
            return self(rows)

    victim, ledger = Victim(fail={2: UnknownOutcomeError("lost")}), Ledger(budget=6)
    ask = Metered(victim, ledger, reveal=Reveal("logits"))
    with pytest.raises(UnknownOutcomeError):
        ask(pixel_rows([1, 2, 3, 4, 5]))
    assert (ledger.spent, ledger.counts()["rows"]) == (4, 2)
    rows = pixel_rows([6, 5, 4, 3, 2])
    np.testing.assert_array_equal(ask(rows), expected(rows))
    assert parts == [[1, 2], [3, 4], [3, 4], [6, 5]]
    assert names[1] == names[2]
    assert len(set(names)) == 3
    assert ledger.counts()["rows"] == ledger.spent == 6


@pytest.mark.parametrize("computes_here", [True, False])
def test_oracles_know_whether_asking_again_costs_anything(computes_here):
    """Rows under way when a run was killed: not paid twice where the victim is in this process."""
    calls = []

    def predict(rows):
        calls.append(len(rows))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return np.full((len(rows), 3), 1 / 3)

    oracle = oracle_for(from_function(predict, (1, 1, 1), 3, repeatable=computes_here))
    with Ledger(budget=10) as ledger:
        ask = Metered(oracle, ledger)
        with pytest.raises(KeyboardInterrupt):
            ask(pixel_rows([1, 2, 3]))
        assert (ledger.spent, ledger.counts()["unknown_rows"]) == (3, 3)
        Metered(oracle, ledger)(pixel_rows([1, 2, 3]))
        assert ledger.spent == (3 if computes_here else 6)
        assert ledger.counts()["unknown_rows"] == (0 if computes_here else 3)


def test_victims_that_compute_here_are_repeatable():
    logits = Partial(lambda rows: rows.reshape(len(rows), 1) * jnp.asarray([[1.0, 2.0, 3.0]]))
    traced = oracle_for(logits, input_shape=(1, 1, 1))
    assert traced.repeatable
    assert explanation_oracle(traced).repeatable
    assert oracle_for(DummyClassifier().fit(np.zeros((3, 1)), [0, 1, 2]), input_shape=(1, 1, 1)).repeatable
    assert not Metered(lambda rows: rows, Ledger(), reveal="anything").repeatable
    with Ledger() as ledger:
        ask = Metered(traced, ledger)
        assert ask.repeatable
        np.testing.assert_allclose(ask(pixel_rows([1, 2])), traced(pixel_rows([1, 2])), rtol=1e-6)


def test_a_repeated_request_that_is_refused_stays_unknown():
    victim = Counting(fail={1: UnknownOutcomeError("lost"), 2: EndpointError("refused")})
    ledger = Ledger()
    ask = metered(ledger, victim, repeatable=True)
    for error in (UnknownOutcomeError, EndpointError):
        with pytest.raises(error):
            ask(pixel_rows([1]))
        assert ledger.counts()["unknown_rows"] == 1
    ask(pixel_rows([1]))
    assert (ledger.spent, ledger.counts()["unknown_rows"]) == (1, 0)


def test_answers_that_cannot_be_right_are_not_stored():
    ledger = Ledger()
    answers = [np.full((2, 3), np.nan, np.float32), np.ones((2, 3), np.float32) / 3]
    ask = Metered(lambda rows: answers.pop(0), ledger, "test", Reveal(), num_classes=3, repeatable=True)
    with pytest.raises(InputError, match="NaN"):
        ask(pixel_rows([1, 2]))
    assert ledger.counts()["unique_rows"] == 0
    assert ledger.spent == 2
    assert ask(pixel_rows([1, 2])).shape == (2, 3)
    assert ledger.spent == 2


# ---- the other meters


def test_evaluation_is_another_meter_and_another_memory():
    ledger, victim = Ledger(budget=2), Counting()
    ask = metered(ledger, victim, batch=3)
    rows = pixel_rows(range(10))
    np.testing.assert_array_equal(ask.evaluate(rows), expected(rows))
    assert (ledger.spent, ledger.counts()["evaluation_rows"], ledger.counts()["unique_rows"]) == (0, 10, 0)
    ask(pixel_rows([1, 2]))  # what was evaluated is not known to the attack, and is paid
    assert ledger.spent == 2
    ask.evaluate(rows)
    assert ledger.counts()["evaluation_rows"] == 20


def test_asking_again_is_counted_and_reaches_the_victim():
    ledger, victim = Ledger(budget=6), Counting()
    ask = metered(ledger, victim)
    rows = pixel_rows([1, 2])
    ask(rows)
    np.testing.assert_array_equal(ask.again(rows), expected(rows))
    ask.again(rows)
    assert victim.calls == 3
    assert (ledger.counts()["rows"], ledger.counts()["unique_rows"]) == (6, 2)
    with pytest.raises(BudgetError):
        ask.again(rows)


def test_a_second_asking_that_was_lost_is_not_taken_for_a_first():
    """Its rows stay unknown and paid; asked in earnest they are a request of their own."""
    ledger = Ledger()
    ask = metered(ledger, Counting(fail={1: UnknownOutcomeError("lost")}), repeatable=True)
    with pytest.raises(UnknownOutcomeError):
        ask.again(pixel_rows([1, 2]))
    ask(pixel_rows([1, 2]))
    assert (ledger.spent, ledger.counts()["rows"], ledger.counts()["unknown_rows"]) == (4, 2, 2)


def test_explanations_have_a_column_and_keys_of_their_own():
    ledger = Ledger()
    plain = metered(ledger)
    explained = metered(ledger, lambda rows: (expected(rows), rows * 2), explanations=True)
    rows = pixel_rows([1, 2, 3])
    plain(rows)
    answers, gradients = explained(rows)
    np.testing.assert_array_equal(answers, expected(rows))
    np.testing.assert_array_equal(gradients, rows * 2)
    explained(rows)
    counts = ledger.counts()
    assert (counts["rows"], counts["explanation_rows"], counts["cache_hits"]) == (6, 3, 3)


def test_a_block_of_a_fused_victim_is_reserved_before_and_charged_after():
    ledger = Ledger(budget=100)
    with ledger.paying(60, explained=True):
        assert ledger.counts()["rows"] == 0
        with pytest.raises(BudgetError, match="60 reserved"):
            ledger.reserve(41)
    assert ledger.counts()["rows"] == ledger.counts()["explanation_rows"] == 60
    with pytest.raises(BudgetError), ledger.paying(41):
        pytest.fail("a block that does not fit was entered")
    with pytest.raises(KeyError), ledger.paying(30):
        raise KeyError
    with pytest.raises(BudgetError, match="30 reserved"):
        ledger.reserve(11)
    assert ledger.counts()["rows"] == 60


def test_fused_victims_reserve_before_and_are_charged_after():
    ledger = Ledger(budget=100)
    ledger.reserve(60)
    assert ledger.remaining == 40
    with pytest.raises(BudgetError, match=r"41 rows asked, 60 of a budget of 100 spent, 40 left \(60 reserved\)"):
        ledger.reserve(41)
    with pytest.raises(BudgetError):
        metered(ledger)(pixel_rows(range(41)))
    ledger.charge(25)
    assert (ledger.spent, ledger.remaining) == (25, 40)
    ledger.release()
    assert ledger.remaining == 75
    assert ledger.counts()["unique_rows"] is None
    with pytest.raises(BudgetError):
        ledger.charge(80)  # nobody asked before: it is recorded all the same
    assert ledger.spent == 105
    with pytest.raises(InputError):
        ledger.reserve(-1)


def test_a_fused_run_that_is_resumed_is_charged_once(tmp_path):
    path = tmp_path / "l"
    with Ledger(path, budget=100) as ledger:
        ledger.reserve(100, block="seed0")
        for so_far in (10, 20, 30):
            ledger.charge(so_far, block="seed0")
    with Ledger(path, budget=100) as ledger:  # killed after step 30, its last checkpoint is of step 20
        ledger.reserve(100, block="seed0")
        with pytest.raises(BudgetError):
            ledger.reserve(1, block="seed1")
        for so_far in (30, 40, 100):
            ledger.charge(so_far, block="seed0")
        assert (ledger.spent, ledger.remaining) == (100, 0)


def test_explained_rows_of_a_fused_victim_are_counted_apart():
    with Ledger(budget=100) as ledger:
        ledger.reserve(100)
        ledger.charge(20)
        ledger.charge(30, explained=True)
        ledger.charge(10, block="b", explained=True)
        ledger.charge(15, block="b", explained=True)  # the block's total: five more
        ledger.charge(35, block="b")
        counts = ledger.counts()
        assert (counts["rows"], counts["explanation_rows"], counts["unique_rows"]) == (85, 45, None)
        assert (ledger.spent, ledger.remaining) == (85, 0)
        ledger.release()
        assert ledger.remaining == 15


# ---- damage


def some_ledger(path):
    """A closed ledger with a bit of everything, its counts, the rows and what was answered to them."""
    rows = np.random.default_rng(4).random((6, 2, 2, 1), np.float32)
    ledger = Ledger(path, budget=50, config="c")
    ask = metered(ledger, Counting(fail={3: UnknownOutcomeError("lost")}), batch=2, repeatable=True, samples=2)
    ask(rows[:4])
    with pytest.raises(UnknownOutcomeError):
        ask(rows[4:])
    ask.evaluate(rows[:3])
    ledger.charge(7, block="fused")
    counts = ledger.counts()
    ledger.close()
    return counts, rows, expected(rows)


def read_back(path, rows):
    """(counts on opening, answers, rows that the victim was asked, unknown rows left)."""
    victim = Counting()
    with Ledger(path, budget=50, config="c") as ledger:
        counts = ledger.counts()
        ask = metered(ledger, victim, batch=2, repeatable=True, samples=0)
        answers = ask(rows)
        return counts, answers, len(victim.asked), ledger.counts()["unknown_rows"]


@pytest.mark.parametrize("flips", [120, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_an_error_or_makes_no_difference(tmp_path, flips):
    """Anywhere in the file: never another answer, another count, or a row paid again."""
    counts, rows, answers = some_ledger(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "whole-wal").exists()
    dice, refused = np.random.default_rng(0), 0
    written = np.flatnonzero(np.frombuffer(whole, np.uint8))  # most of the file is empty
    for number in range(flips):
        damaged = bytearray(whole)
        damaged[int(dice.choice(written))] ^= 1 << int(dice.integers(8))
        path = tmp_path / f"{number}"
        path.write_bytes(damaged)
        try:
            found = read_back(path, rows)
        except LedgerError:
            refused += 1
        else:
            assert found[0] == counts
            np.testing.assert_array_equal(found[1], answers)
            assert found[2:] == (2, 0)  # the two rows that were under way
        path.unlink()
    assert refused > flips / 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            "UPDATE answers SET data = CAST(x'00' || substr(data, 2) AS BLOB)",
            "the stored answer to row [0-9a-f]{16} does not match",
        ),
        ("UPDATE layouts SET layout = replace(layout, '<f4', '<i4')", "the stored answer to row"),
        (
            "UPDATE requests SET keys = CAST(keys || x'00' AS BLOB) WHERE state = 'sent'",
            "the open request 3 does not match",
        ),
        ("UPDATE meters SET value = 3 WHERE name = 'evaluation_rows'", None),
        ("UPDATE meters SET value = 2 WHERE name = 'evaluation_rows'", "counts do not match their checksum"),
        ("UPDATE blocks SET count = 6", "counts do not match their checksum"),
        ("UPDATE requests SET state = 'answered'", "counts 11 rows, and its requests and answers make 13"),
        ("DELETE FROM requests WHERE id = 1", "counts 11 rows, and its requests and answers make 9"),
        ("DELETE FROM answers WHERE rowid = 1", "counts 4 unique_rows, and its requests and answers make 3"),
    ],
)
def test_what_was_changed_is_found(tmp_path, change, match):
    counts, rows, _ = some_ledger(tmp_path / "l")
    database = sqlite3.connect(tmp_path / "l", isolation_level=None)
    database.execute("DROP TRIGGER answers_stay")
    database.execute("DROP TRIGGER answers_last")
    database.execute(change)
    database.close()
    if match is None:  # what is written is what was there
        assert read_back(tmp_path / "l", rows)[0] == counts
    else:
        with pytest.raises(LedgerError, match=f"damaged.*{match}"):
            read_back(tmp_path / "l", rows)


# ---- files of the version before

VERSION_1 = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE meters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE layouts (id INTEGER PRIMARY KEY, layout TEXT UNIQUE NOT NULL);
CREATE TABLE answers (key BLOB PRIMARY KEY, layout INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE requests (id INTEGER PRIMARY KEY, state TEXT NOT NULL, count INTEGER NOT NULL, explained INTEGER NOT NULL, keys BLOB NOT NULL);
CREATE INDEX open_requests ON requests (id) WHERE state = 'sent';
CREATE TABLE blocks (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TRIGGER answers_stay BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'answers are only added'); END;
CREATE TRIGGER answers_last BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'answers are only added'); END;
PRAGMA application_id = 1684433765;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def version_1(path, rows):
    """A ledger as the first version wrote it: four rows answered by logits, two under way, seven fused."""
    kind = json.dumps({"decimals": None, "k": None, "kind": "logits", "renormalise": False}, sort_keys=True)
    keys = row_keys(rows, "test", kind)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(VERSION_1)
    facts = {"id": "0123456789abcdef" * 2, "config": "c", "endpoint": "test", "reveal": kind}
    database.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    meters = {"rows": 11, "unique_rows": 4, "unknown_rows": 2, "fused_rows": 7, "requests": 3,
              "explanation_rows": 0, "cache_hits": 5, "evaluation_rows": 3}  # fmt: skip
    database.executemany("INSERT INTO meters VALUES (?, ?)", meters.items())
    database.execute("INSERT INTO layouts VALUES (1, ?)", ('["array", [["<f4", [2]]]]',))
    answered = [(key, row.tobytes()) for key, row in zip(keys, expected(rows[:4]), strict=False)]
    database.executemany("INSERT INTO answers VALUES (?, 1, ?)", answered)
    database.executemany("INSERT INTO requests VALUES (?, 'answered', 2, 0, x'')", [(1,), (2,)])
    database.execute("INSERT INTO requests VALUES (3, 'sent', 2, 0, ?)", (b"".join(keys[4:]),))
    database.execute("INSERT INTO requests VALUES (4, 'withdrawn', 2, 0, x'')")
    database.execute("INSERT INTO blocks VALUES ('fused', 7)")
    database.close()
    return {"budget": 50, **{name: n for name, n in meters.items() if name != "fused_rows"}, "unique_rows": None}


def test_a_file_of_the_version_before_is_taken_over(tmp_path):
    rows = np.random.default_rng(4).random((6, 2, 2, 1), np.float32)
    counts = version_1(tmp_path / "l", rows)
    for _ in range(2):
        with Ledger(tmp_path / "l", budget=50, config="c") as ledger:
            assert ledger.counts() == counts
            assert ledger.id == "0123456789abcdef" * 2
            assert [number for number, _ in ledger.open_requests()] == [3]
            assert ledger.instance_of(3) == ""
    found = read_back(tmp_path / "l", rows)
    assert found[0] == counts
    np.testing.assert_array_equal(found[1], expected(rows))
    assert found[2:] == (2, 0)
    database = sqlite3.connect(tmp_path / "l")
    assert database.execute("PRAGMA user_version").fetchone() == (3,)
    with pytest.raises(sqlite3.DatabaseError, match="only added"):
        database.execute("UPDATE answers SET data = x'00'")
    columns = lambda name: database.execute(
        f"SELECT name, type, dflt_value FROM pragma_table_info('{name}')"
    ).fetchall()
    with Ledger(tmp_path / "new") as ledger:
        for table in ("facts", "meters", "layouts", "answers", "requests", "blocks", "samples", "phases"):
            fresh = ledger._database.execute(f"SELECT name, type, dflt_value FROM pragma_table_info('{table}')")
            assert columns(table) == fresh.fetchall()
    database.execute("DROP TRIGGER answers_stay")
    database.execute("UPDATE answers SET data = CAST(x'00' || substr(data, 2) AS BLOB)")
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match="does not match its checksum"):
        read_back(tmp_path / "l", rows)


def version_2(path):
    """A ledger as the second version wrote it: without phases, and sealed over three tables."""
    counts, rows, answers = some_ledger(path)
    with Ledger(path, config="c") as ledger:
        checksum = ledger._checksum
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("DROP TABLE phases")
    tables = (
        "SELECT name, value FROM meters ORDER BY name",
        "SELECT name, count FROM blocks ORDER BY name",
        "SELECT name, value FROM facts WHERE name != 'seal' ORDER BY name",
    )
    seal = checksum(*(str(database.execute(table).fetchall()) for table in tables)).hex()
    database.execute("UPDATE facts SET value = ? WHERE name = 'seal'", (seal,))
    database.execute("PRAGMA user_version = 2")
    database.close()
    return counts, rows, answers


def test_a_file_of_the_second_version_is_taken_over(tmp_path):
    counts, rows, answers = version_2(tmp_path / "l")
    for _ in range(2):
        with Ledger(tmp_path / "l", budget=50, config="c") as ledger:
            assert ledger.counts() == counts
            assert ledger.phases() == {}
    found = read_back(tmp_path / "l", rows)
    np.testing.assert_array_equal(found[1], answers)
    assert found[2:] == (2, 0)
    with Ledger(tmp_path / "l", config="c") as ledger:
        assert ledger._one("PRAGMA user_version") == 3


def test_what_was_damaged_before_is_not_sealed_by_taking_it_over(tmp_path):
    version_2(tmp_path / "l")
    database = sqlite3.connect(tmp_path / "l", isolation_level=None)
    database.execute("UPDATE meters SET value = value + 1 WHERE name = 'cache_hits'")
    database.close()
    with pytest.raises(LedgerError, match=r"damaged.*counts do not match"):
        Ledger(tmp_path / "l", config="c")


def test_a_file_of_a_later_version_is_left_alone(tmp_path):
    some_ledger(tmp_path / "l")
    database = sqlite3.connect(tmp_path / "l")
    database.execute("PRAGMA user_version = 4")
    database.close()
    with pytest.raises(LedgerError, match="no ledger of this version"):
        Ledger(tmp_path / "l", config="c")


# ---- another model behind the same name


def test_a_model_that_changed_between_two_openings_is_noticed(tmp_path):
    """In this process asking again costs nothing and is not counted; in another nothing new is taken from it."""
    rows, weights = np.random.default_rng(1).random((9, 1, 1, 3), np.float32), np.eye(3)
    shifted = lambda by: from_function(
        lambda x: x.reshape(-1, 3) @ (weights + by), (1, 1, 3), 3, gives="logits", name="same", repeatable=True
    )
    with Ledger(tmp_path / "l", budget=9) as ledger:
        Metered(oracle_for(shifted(0), Reveal("logits")), ledger)(rows[:5])
    with Ledger(tmp_path / "l", budget=9) as ledger:
        ask = Metered(oracle_for(shifted(0.01), Reveal("logits")), ledger)
        np.testing.assert_array_equal(ask(rows[:5]), rows[:5].reshape(5, 3))  # what is stored is what was answered
        with pytest.raises(LedgerError, match="answers 4 of 4 rows otherwise than it did"):
            ask(rows)
        assert ledger.spent == 5
        np.testing.assert_allclose(  # on the caller's responsibility
            Metered(oracle_for(shifted(0.01), Reveal("logits")), ledger, samples=0)(rows)[5:],
            rows[5:].reshape(4, 3) @ (weights + 0.01),
            rtol=1e-5,
        )
    with Ledger(tmp_path / "k", budget=9) as ledger:
        Metered(oracle_for(shifted(0), Reveal("logits")), ledger)(rows[:5])
    with Ledger(tmp_path / "k", budget=9) as ledger:  # sums in another order are the same model
        Metered(oracle_for(shifted(1e-6), Reveal("logits")), ledger)(rows)
        assert ledger.spent == ledger.counts()["rows"] == 9


def test_labels_and_rounded_answers_are_compared_too(tmp_path):
    rows = np.random.default_rng(1).random((9, 1, 1, 3), np.float32)
    for reveal, by, changed in (
        (Reveal("label"), 0.0, False),
        (Reveal("label"), [2, 0, 0], True),
        (Reveal("probabilities", decimals=2), 1e-3, False),
        (Reveal("probabilities", decimals=2), [0.3, 0, 0], True),
    ):
        path = tmp_path / f"{reveal.kind}{changed}"
        for shift, part in ((0.0, rows[:5]), (np.asarray(by), rows)):
            logits = lambda x, shift=shift: x.reshape(-1, 3) + shift
            victim = from_function(logits, (1, 1, 3), 3, gives="logits", repeatable=True)
            with Ledger(path) as ledger:
                ask = Metered(oracle_for(victim, reveal), ledger, "same")
                if changed and len(part) > 5:
                    with pytest.raises(LedgerError, match="rows otherwise"):
                        ask(part)
                else:
                    ask(part)


def test_a_comparison_counts_and_needs_room_in_the_budget(tmp_path):
    """A victim that may charge: the rows that are asked again are rows, and are left out where they do not fit."""
    rows = pixel_rows(range(12))

    class Away(Counting):
        def request(self, rows, key):
            return self(rows)

    def opened(budget, part):
        victim = Away()
        with Ledger(tmp_path / "l", budget=budget) as ledger:
            answers = metered(ledger, victim, samples=3)(part)
            np.testing.assert_array_equal(answers, expected(part))
            return len(victim.asked), ledger.spent

    assert opened(5, rows[:5]) == (5, 5)
    assert opened(5, rows[:5]) == (0, 5)  # nothing new is asked, nothing can be mixed
    assert opened(20, rows[:7]) == (5, 10)
    with pytest.warns(LedgerWarning, match="4 rows of the budget are left and 2 are asked: 3 more") as said:
        assert opened(14, rows[:9]) == (2, 12)
    assert len(said) == 1
    with Ledger(tmp_path / "l") as ledger:
        counts = ledger.counts()
        assert (counts["rows"], counts["unique_rows"], counts["requests"]) == (12, 9, 4)
    with pytest.raises(InputError, match="samples"):
        metered(Ledger(), samples=-1)


def test_rows_kept_for_comparison_are_checked_themselves(tmp_path):
    some_ledger(tmp_path / "l")
    database = sqlite3.connect(tmp_path / "l")
    database.execute("UPDATE samples SET data = CAST(x'3f' || substr(data, 2) AS BLOB)")
    database.commit()
    database.close()
    with Ledger(tmp_path / "l", config="c") as ledger, pytest.raises(LedgerError, match="kept for comparison differ"):
        metered(ledger, repeatable=True, samples=2)(pixel_rows([5]))


# ---- formulas


def recount_dfme(batch, generator_steps, directions, clone_steps):
    rows = 0
    for _ in range(generator_steps):
        rows += batch  # the points themselves
        for _ in range(directions):
            rows += batch
    for _ in range(clone_steps):
        rows += batch
    return rows


def test_formulas_against_loops_and_printed_figures():
    assert rows_per_step("dfme", batch=256, generator_steps=1, directions=1, clone_steps=5) == 1792
    assert rows_per_step("maze", batch=128, generator_steps=1, directions=10, clone_steps=5, reuse=True) == 1920
    assert rows_per_step("megex", batch=256, generator_steps=1, clone_steps=5) == 6 * 256
    assert rows_per_step("jbda", seeds=100, rounds=5) == 3200
    assert rows_per_step("equation_solving", features=64) == 65
    assert rows_per_step("equation_solving", features=64, extra=5) == 70
    assert rows_per_step("retraining", features=64, classes=10, factor=100) == 65_000
    for name in ("dfms", "disguide", "dual_students"):
        assert rows_per_step(name, batch=64, clone_steps=3) == 192
    for sizes in ((3, 2, 1, 4), (5, 1, 10, 5), (2, 0, 3, 1)):
        names = ("batch", "generator_steps", "directions", "clone_steps")
        assert rows_per_step("dfme", **dict(zip(names, sizes, strict=True))) == recount_dfme(*sizes)
        assert rows_per_step("maze", **dict(zip(names, sizes, strict=True))) == recount_dfme(*sizes)
    assert rows_per_step("functional_equivalence", brackets=10, neurons=4, features=6) == 50 + 56 + 44


def test_formulas_say_what_they_lack():
    with pytest.raises(DfkeError, match="unknown attack 'dfmee'; nearest: dfme"):
        rows_per_step("dfmee", batch=1)
    with pytest.raises(InputError, match="missing: clone_steps, unknown: steps"):
        rows_per_step("dfms", batch=1, steps=2)
    with pytest.raises(InputError, match="at least 0"):
        rows_per_step("dfms", batch=-1, clone_steps=2)


def test_phases_are_counted_by_name_and_in_the_file(tmp_path):
    """A row is counted where it was paid, a repeated one where it was repeated, and a resumed run pays no phase again."""
    first, second = pixel_rows([1, 2, 3]), pixel_rows([3, 4])
    for again in (False, True):
        with Ledger(tmp_path / "l", budget=9) as ledger:
            ask = metered(ledger, batch=2)
            with ask.phase("outer"):
                ask(first)
                with ask.phase("inner"):
                    ask(second)
                ask(first)
            ask(pixel_rows([5]))
            with pytest.raises(BudgetError), ask.phase("too much"):
                ask(pixel_rows(range(10, 20)))
            ask.evaluate(first)
            hits = (3, 1) if not again else (9, 3)
            assert ledger.phases() == {
                "inner": {"rows": 1, "cache_hits": hits[1]},
                "outer": {"rows": 3, "cache_hits": hits[0]},
            }
            assert ledger.counts()["rows"] == 5
            with pytest.raises(InputError, match="name"), ask.phase(""):
                pass
    database = sqlite3.connect(tmp_path / "l", isolation_level=None)
    database.execute("UPDATE phases SET count = count - 1 WHERE name = 'outer'")
    database.close()
    with pytest.raises(LedgerError, match=r"damaged.*counts do not match"):
        Ledger(tmp_path / "l")


def test_a_request_that_was_under_way_is_counted_in_the_phase_that_repeats_it(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        ask = metered(ledger, Counting({1: UnknownOutcomeError("lost")}), repeatable=True)
        with pytest.raises(UnknownOutcomeError), ask.phase("kinks"):
            ask(pixel_rows([1, 2]))
        assert ledger.phases() == {}
        with ask.phase("kinks"):
            ask(pixel_rows([1, 2]))
        assert ledger.phases() == {"kinks": {"rows": 2, "cache_hits": 0}}
        assert ledger.counts()["unknown_rows"] == 0


def test_an_adaptive_attack_is_held_to_a_bound():
    ledger = Ledger()
    metered(ledger)(pixel_rows([1, 2, 3]))
    check_spent(ledger, 5, at_most=True)
    check_spent(ledger, 3, at_most=True)
    with pytest.raises(LedgerError, match="says at most 2 rows, and it asked 3"):
        check_spent(ledger, 2, at_most=True)


def test_check_spent_compares_with_the_formula():
    ledger = Ledger()
    ask = metered(ledger)
    ask(pixel_rows([1, 2, 3]))
    check_spent(ledger, 3)
    for wrong in (2, 4):
        with pytest.raises(LedgerError, match=f"formula says {wrong} rows, and it asked 3"):
            check_spent(ledger, wrong)
    ask(pixel_rows([1, 4]))
    check_spent(ledger, 5)
    with pytest.raises(InputError):
        Ledger(budget=-1)
    with pytest.raises(InputError, match="reveals"):
        Metered(Counting(), ledger)
    with pytest.raises(InputError, match="batch"):
        metered(ledger, batch=0)
