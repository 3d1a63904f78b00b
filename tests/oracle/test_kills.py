"""Client and endpoint are killed at random moments, and an account that neither of them keeps says what was paid.

Both run as children of a process that has imported everything before (importing takes seconds,
forking does not). The account is a file beside the package: whatever answers leave the endpoint are
entered there by a layer around it.
"""

import collections
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from dfke_jax.oracle import Ledger

NURSERY = textwrap.dedent(
    """
    import hashlib, io, json, os, signal, sys, time, traceback, warnings
    import httpx, uvicorn, starlette.applications
    import numpy as np
    from dfke_jax.oracle import Ledger, Metered, RemoteVictim, Reveal, create_app
    from dfke_jax.oracle.journal import Journal
    from dfke_jax.oracle.serve import serve

    WEIGHTS = np.random.default_rng(5).normal(size=(16, 3))

    def probabilities(rows):
        time.sleep(0.003)
        odds = np.exp(rows.reshape(len(rows), -1).astype(np.float64) @ WEIGHTS)
        return (odds / odds.sum(1, keepdims=True)).astype(np.float32)

    class Account:
        '''Enters every answer that leaves, before it leaves: one line, appended in one write.'''

        def __init__(self, app, path):
            self.app, self.file = app, os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

        async def __call__(self, scope, receive, send):
            if scope.get("path") != "/v1/predict":
                return await self.app(scope, receive, send)
            body, parts, start = bytearray(), [], []

            async def listen():
                message = await receive()
                body.extend(message.get("body", b""))
                return message

            async def say(message):
                if message["type"] == "http.response.start":
                    start.append(message)
                    return
                parts.append(message["body"])
                if not message.get("more_body"):
                    if start[0]["status"] == 200:
                        rows = np.load(io.BytesIO(bytes(body)))
                        headers = dict(start[0]["headers"])
                        line = {
                            "name": dict(scope["headers"])[b"idempotency-key"].decode(),
                            "repeated": b"idempotent-replayed" in headers,
                            "rows": [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows],
                            "answer": hashlib.sha256(b"".join(parts)).hexdigest(),
                        }
                        os.write(self.file, (json.dumps(line) + "\\n").encode())
                    await send(start[0])
                    await send({"type": "http.response.body", "body": b"".join(parts)})

            await self.app(scope, listen, say)

    def endpoint(port, account, journal):
        app = create_app(
            probabilities, input_shape=(4, 4, 1), reveal=Reveal(), num_classes=3,
            journal=Journal(journal) if journal != "-" else None,
        )
        serve(Account(app, account), port=int(port))

    def client(port, ledger, budget, steps, samples, out):
        patience = {"backoff": 0.01, "max_backoff": 0.03, "retries": 300, "timeout": 5.0}
        victim = RemoteVictim(f"http://127.0.0.1:{port}", batch=4, concurrency=3, **patience)
        ask = Metered(
            victim, Ledger(ledger, budget=int(budget), config="kills"), "victim", samples=int(samples)
        )
        state, answers = np.float32(0.5), []
        for step in range(int(steps)):  # what is asked depends on what was answered
            rows = np.random.default_rng(step).random((12, 4, 4, 1)).astype(np.float32) * state
            rows[7] = rows[3]
            answers.append(ask(rows))
            state = np.float32(0.2 + 0.8 * answers[-1][:, 0].mean())
        np.save(out + ".part.npy", np.concatenate(answers))
        os.replace(out + ".part.npy", out)

    warnings.simplefilter("ignore", RuntimeWarning)  # jax's, of forks; nothing here computes with it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        log, what, *words = line.split()
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), 1)
            os.dup2(1, 2)
            try:
                {"endpoint": endpoint, "client": client}[what](*words)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        print(pid, flush=True)
    """
)
DISTINCT = 11  # of the twelve rows of a step


@pytest.fixture(scope="module")
def nursery():
    """Starts children: ``nursery(log, "client" | "endpoint", *words) -> pid``."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        started = []

        def start(*words):
            process.stdin.write(" ".join(map(str, words)) + "\n")
            process.stdin.flush()
            started.append(int(process.stdout.readline()))
            return started[-1]

        yield start
        for pid in started[-4:]:  # those before were seen to end
            kill(pid)
        process.stdin.close()


def alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while alive(pid):
        time.sleep(0.001)


class World:
    """A client and an endpoint in a folder, and what the account says."""

    def __init__(self, nursery, folder, *, steps, budget, samples=0, remembers=True):
        folder.mkdir(parents=True)
        self.nursery, self.folder, self.steps, self.budget, self.samples = nursery, folder, steps, budget, samples
        self.journal = folder / "journal" if remembers else "-"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.pids = {"endpoint": None, "client": None}

    def start(self, what):
        words = {
            "endpoint": (self.port, self.folder / "account", self.journal),
            "client": (
                self.port, self.folder / "ledger", self.budget, self.steps, self.samples, self.folder / "answers.npy",
            ),
        }  # fmt: skip
        self.pids[what] = self.nursery(self.folder / f"{what}.log", what, *words[what])

    @property
    def done(self):
        return (self.folder / "answers.npy").exists()

    def revive(self):
        """Starts what does not run; an endpoint always, a client until it is done."""
        for what, pid in self.pids.items():
            if (pid is None or not alive(pid)) and not (what == "client" and self.done):
                self.start(what)

    def lines(self):
        with contextlib.suppress(FileNotFoundError):
            whole, _, _ = (self.folder / "account").read_text().rpartition("\n")
            return [json.loads(line) for line in whole.splitlines()]
        return []

    def paid(self):
        """Rows that were charged: of every request the first answer that left, and all that were no repetitions.

        The first may be a repetition, where the endpoint was killed between its own entry and the account's.
        """
        paid, names = [], set()
        for line in self.lines():
            if not line["repeated"] or line["name"] not in names:
                paid += line["rows"]
            names.add(line["name"])
        return paid

    def finish(self):
        until = time.monotonic() + 240
        while not self.done:
            assert time.monotonic() < until, (self.folder / "client.log").read_text()[-3000:]
            self.revive()
            time.sleep(0.01)
        for pid in self.pids.values():
            kill(pid)
        return np.load(self.folder / "answers.npy")


def disturbed(nursery, folder, kills, seed, *, steps, budget, samples, remembers):
    """Runs to the end in spite of so many kills, checking the accounts after each; (world, answers, rows midway)."""
    dice = random.Random(seed)
    world, expected = World(nursery, folder, steps=steps, budget=budget, samples=samples, remembers=remembers), []
    world.revive()
    for i in range(kills):
        target = steps * DISTINCT * (i + dice.random()) / (kills + 1)
        until = time.monotonic() + 60
        while len(set(world.paid())) < target:
            assert time.monotonic() < until, (folder / "client.log").read_text()[-3000:]
            world.revive()
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.03))
        victims = dice.choice([("client",), ("endpoint",), ("client", "endpoint"), ("endpoint", "client")])
        for what in victims:
            kill(world.pids[what])
        if "client" in victims:  # then nobody writes to the ledger
            with Ledger(folder / "ledger", config="kills") as ledger:
                counts, spent = ledger.counts(), ledger.spent
            assert len(world.paid()) <= spent <= budget
            assert counts["unique_rows"] <= len(set(world.paid()))
        expected.append(len(set(world.paid())))
        world.revive()
    return world, world.finish(), expected


def killed(nursery, folder, kills, seed, *, steps, samples=0, spare=0, remembers=True):
    """As `disturbed`; the answers of an undisturbed run, the account's lines and the ledger's counts, all checked."""
    asked = steps * DISTINCT
    whole = World(nursery, folder / "whole", steps=steps, budget=asked)
    whole.revive()
    uninterrupted = whole.finish()
    assert len(whole.paid()) == len(set(whole.paid())) == asked

    budget = asked + spare
    world, answers, midway = disturbed(
        nursery, folder / "killed", kills, seed, steps=steps, budget=budget, samples=samples, remembers=remembers
    )
    np.testing.assert_array_equal(answers, uninterrupted)
    assert len(set(midway)) > kills / 2  # the kills fell into the run
    assert max(midway) < asked
    with Ledger(folder / "killed" / "ledger", config="kills") as ledger:
        counts, spent = ledger.counts(), ledger.spent
    paid, lines = world.paid(), world.lines()
    assert set(paid) == set(whole.paid())
    assert counts["unique_rows"] == asked
    assert len(paid) <= spent <= budget
    for name in {line["name"] for line in lines}:  # a repetition says what was said, whoever says it
        assert len({line["answer"] for line in lines if line["name"] == name}) == 1
    return world, paid, lines, counts


def check_that_no_row_was_paid_twice(world, paid, lines, counts):
    """With a journal: by the account, by the journal, and by the ledger."""
    asked = world.steps * DISTINCT
    assert len(paid) == len(set(paid)) == asked
    names = collections.defaultdict(set)
    for line in lines:
        for row in line["rows"]:
            names[row].add(line["name"])
    assert {len(several) for several in names.values()} == {1}
    assert (counts["rows"], counts["unknown_rows"]) == (asked, 0)
    with contextlib.closing(sqlite3.connect(world.journal)) as journal:
        assert journal.execute("SELECT sum(rows) FROM charges").fetchone() == (asked,)
        assert journal.execute("SELECT count(*) FROM answers").fetchone() == (counts["requests"],)


def test_killed_on_both_sides_no_row_is_paid_twice(nursery, tmp_path):
    check_that_no_row_was_paid_twice(*killed(nursery, tmp_path / "w", 3, seed=1, steps=10))


@pytest.mark.slow
def test_killed_on_both_sides_with_an_endpoint_that_forgets(nursery, tmp_path):
    """Rows may be paid twice then, and the ledger has counted them as often."""
    world, paid, _, counts = killed(
        nursery, tmp_path / "w", 3, seed=2, steps=10, samples=2, spare=3 * (2 * 2 + 12), remembers=False
    )
    assert counts["rows"] + counts["unknown_rows"] >= len(paid) >= world.steps * DISTINCT


@pytest.mark.slow
def test_a_hundred_kills(nursery, tmp_path):
    check_that_no_row_was_paid_twice(*killed(nursery, tmp_path / "w", 100, seed=3, steps=120))


@pytest.mark.slow
def test_a_hundred_kills_with_an_endpoint_that_forgets(nursery, tmp_path):
    world, paid, _, counts = killed(
        nursery, tmp_path / "w", 100, seed=4, steps=120, samples=2, spare=100 * (2 * 2 + 12), remembers=False
    )
    assert counts["rows"] + counts["unknown_rows"] >= len(paid) >= world.steps * DISTINCT
