"""Thousands of malformed requests to the endpoint and of malformed answers to the client, drawn from a seed.

``python tests/oracle/test_fuzz.py requests|answers COUNT SEED`` runs one of the two alone and prints how much memory it
took above idle; the slow tests do that in a process of their own.
"""

import contextlib
import gzip
import io
import json
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from dfke_jax.core.errors import EndpointError
from dfke_jax.oracle import RemoteVictim, Reveal, background, create_app

SHAPE, CLASSES = (4, 4, 1), 3
MOST_MB = 200


def answers_of(rows):
    odds = np.exp(rows.reshape(len(rows), -1)[:, :CLASSES].astype(np.float64))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


# ---- what is malformed

HEADERS = [
    "", "{", "{}", "[]", "None", "{'descr': '<f4'}", "{'descr': '<f4', 'fortran_order': False, 'shape': 2}",
    "{'descr': %D, 'fortran_order': %O, 'shape': %S, }", "{'descr': %D, 'fortran_order': %O, 'shape': %S, ",
    "{'shape': %S, 'descr': %D, 'fortran_order': %O, 'more': 1}", "{'descr': %D, 'fortran_order': %O, 'shape': %S L}",
    "{'descr': %D, 'fortran_order': %O, 'shape': (2L, 4, 4, 1)}", "(" * 90 + "1" + ")" * 90, "{" * 5000, "'''", "\\",
    "\x00", "\n  x\n y", "{'descr': %D, 'fortran_order': %O, 'shape': %S}\n#", "0777", "1if 1else 2", "é", "[" * 3000,
    "{'descr': %D,\n\t'fortran_order': %O,\n  'shape': %S}", "-" * 9000 + "1", "1" * 9000, "1" + "+1" * 4000, "f'{1}'",
]  # fmt: skip
TYPES = [
    "'<f4'", "'>f4'", "'<f8'", "'|u1'", "'|b1'", "'<f2'", "'<f16'", "'<c8'", "'|O'", "'<M8[s]'", "'<m8'", "'|V4'", "'<U9'",
    "'|S99999999'", "'f4,f4'", "'(2,3)f4'", "[('a', '<f4')]", "[('a', '<f4'), ('a', '<f4')]", "None", "'x'", "''", "4",
    "'<f3'", "'<i8'", "'<u8'", "('<f4', (2,))", "{'names': ['a'], 'formats': ['<f4']}", "b'<f4'", "'<f4\\x00'", "'f4' 'f4'",
]  # fmt: skip
ORDERS = ["False", "True", "0", "None", "'x'", "[]"]
SHAPES = [
    "(2, 4, 4, 1)", "(0, 4, 4, 1)", "(-1, 4, 4, 1)", "(2, 4, 4)", "()", "(2,)", "(True, 4, 4, 1)", "(2.0, 4, 4, 1)", "32",
    "(99999, 4, 4, 1)", f"(0, {2**62}, {2**62}, 4)", f"({2**70},)", f"({2**63}, 0)", "(" + "1, " * 70 + ")", "('2', 4)",
    "(" + "0, " * 200 + ")", "[2, 4, 4, 1]", "(None,)", "(-2, -16)", f"(-{2**70}, 4)", "(2, 4, (4,), 1)", "(1, 4, 4, 2)",
    f"({10**600},)", "(1 + 1, 4, 4, 1)", "(2j,)", "(-0, 4, 4, 1)", f"(0, {2**31 - 1}, {2**31 - 1}, {2**31 - 1})",
]  # fmt: skip


def spoilt_npy(dice, rows):
    """A body that is nearly an array, in one of several ways."""
    body = bytearray(npy(rows))
    way = dice.randrange(6)
    if way == 0:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(200)))
    if way == 1:  # bytes flipped, mostly in the header
        for _ in range(dice.randint(1, 6)):
            body[dice.randrange(len(body) if dice.random() < 0.3 else 128)] = dice.randrange(256)
        return bytes(body)
    if way == 2:
        return bytes(body[: dice.randrange(len(body))])
    if way == 3:
        return bytes(body) + bytes(dice.randrange(1, 50))
    header = dice.choice(HEADERS).replace("%D", dice.choice(TYPES)).replace("%O", dice.choice(ORDERS))
    header = header.replace("%S", dice.choice(SHAPES)).encode("utf-8") + b"\n"
    version = dice.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x00\x00", b"\xff\xff"])
    wide = version[0] != 1
    size = dice.choice([len(header), len(header), len(header), len(header) + 1, 0, 2**16 - 1])
    length = struct.pack("<I" if wide else "<H", min(size, 2**16 - 1))
    return b"\x93NUMPY" + version + length + header + bytes(body[128:])


def spoilt_numbers(dice, rows):
    """A whole array of numbers that mean nothing."""
    kind = dice.choice(
        [np.float16, np.float32, np.float64, np.uint8, np.int64, np.uint64, np.bool_, np.longdouble, ">f4"]
    )
    values = dice.choice([np.nan, np.inf, -np.inf, 3e38, 1e308, -5, 0, 1, 255])
    with np.errstate(all="ignore"):
        return npy(np.full(rows.shape, values).astype(kind))


LEAVES = ["1", "-1", "0.5", "1e300", "1e999", "-1e999", "9" * 30, "9" * 6000, "NaN", "Infinity", "null", "true", '"x"', "{}",
          "[]", '"\\ud800"', '"' + "x" * 3000 + '"', "1" * 400, "0x1", "01", "1.", "--1", "", '{"rows": 1}', "-0"]  # fmt: skip


def spoilt_json(dice, rows):
    whole = json.dumps({"rows": rows.tolist()})
    way = dice.randrange(8)
    if way == 0:
        return whole[: dice.randrange(len(whole))].encode()
    if way == 1:
        body = bytearray(whole.encode())
        for _ in range(dice.randint(1, 5)):
            body[dice.randrange(len(body))] = dice.choice(b'[]{},:"0919eE.-\\ \x00\xff')
        return bytes(body)
    if way == 2:
        deep = dice.choice([5, 100, 3000, 30_000])
        return (b"[" * deep) + (b"]" * deep if dice.random() < 0.5 else b"")
    if way == 3:
        text = '["' + "x" * dice.choice([10, 5000]) + '"' + ', ""' * dice.choice([1, 4000]) + "]"
        return ('{"rows": ' + text + "}").encode()
    if way == 4:
        return ("[" + ",".join([dice.choice(LEAVES)] * dice.choice([1, 2, 3000])) + "]").encode()
    if way == 5:
        return re.sub(r"\d\.\d+", lambda found: dice.choice([found[0], found[0], dice.choice(LEAVES)]), whole).encode()
    if way == 6:
        return dice.choice([
            b'{"rows": [], "rows": []}', b'{"row": [[1]]}', b'{"rows": {"rows": []}}', b'{"rows"}', b"\xff\xfe[\x00", b"",
            whole.encode("utf-16"), whole.encode() * 2, b"[" + b"[]," * 20_000 + b"[]]", b'{"a":' * 9000, b"\xef\xbb\xbf[]",
            b'{"rows": [[[[0]]]]}', b'{"' + b"k" * 9000 + b'": 1}', b"[[[[1e-999]]]]",
        ])  # fmt: skip
    cut = rows[..., : dice.randrange(2)].tolist() if dice.random() < 0.5 else rows.reshape(-1).tolist()
    return json.dumps(cut).encode()


# ---- requests

NAMES = [b"", b"x", b"k" * 256, b"k" * 257, b"\xff\xfe", b"a b", "²".encode()]
SIZES = [b"0", b"-1", b"9" * 30, b"2, 3", "²".encode("latin-1"), b"", b"0x10", b"5", b"100000", b" 7"]


def malformed_request(dice, place):
    """(bytes on the wire, whether HTTP itself is in order)."""
    rows = np.random.default_rng(place).random((dice.randint(1, 3), *SHAPE)).astype(np.float32)
    path = dice.choice([b"/v1/predict"] * 8 + [b"/v1/explain"])
    kind = dice.choice([b"application/x-npy", b"application/json", b"application/octet-stream"])
    maker = spoilt_json if kind == b"application/json" else dice.choice([spoilt_npy, spoilt_npy, spoilt_numbers])
    body, method = maker(dice, rows), b"POST"
    headers = [(b"Host", b"x"), (b"Connection", b"close"), (b"Content-Type", kind)]
    sound = dice.random() < 0.8
    headers.append((b"X-API-Key", b"body" if sound else b"wire"))
    if dice.random() < 0.3:
        headers.append((b"Idempotency-Key", dice.choice(NAMES) or b"y"))
    if sound:
        headers.append((b"Content-Length", str(len(body)).encode()))
        if dice.random() < 0.05:
            headers[2] = (b"Content-Type", bytes(dice.randrange(32, 127) for _ in range(9)))
        if dice.random() < 0.05:
            headers.append((b"Content-Encoding", dice.choice([b"gzip", b"br", b"\xff"])))
        return _wire(method, path, headers, body), True
    if dice.random() < 0.5:
        body = npy(rows)
    way = dice.randrange(7)
    if way == 0:
        headers.append((b"Content-Length", dice.choice(SIZES)))
    elif way == 1:
        headers.append((b"Transfer-Encoding", dice.choice([b"chunked", b"gzip", b"chunked, chunked", b"\x00"])))
        sizes = [b"5", b"-5", b"zz", b"fffffffff", b"5;x=y", b"0"]
        body = b"".join(dice.choice(sizes) + b"\r\n" + body[:5] + b"\r\n" for _ in range(3))
    elif way == 2:
        method = dice.choice([b"GET", b"PUT", b"P\x00ST", b"", b"\xff", b"CONNECT", b"HEAD"])
        path = dice.choice([b"/v1/usage", b"/v1/describe", b"*", b"", b"http://[", b"/%00%ff", b"/" + b"x" * 70_000])
    elif way == 3:
        headers.append(
            (dice.choice([b"", b"A B", b"X\x00", b"X" * 70_000, b"Upgrade"]), dice.choice([b"", b"\x00", b"websocket"]))
        )
    elif way == 4:
        wire = bytearray(_wire(method, path, headers, body))
        for _ in range(dice.randint(1, 9)):
            wire[dice.randrange(min(len(wire), 150))] = dice.randrange(256)
        return bytes(wire), False
    elif way == 5:
        wire = _wire(method, path, headers, body)
        return wire[: dice.randrange(len(wire))], False
    else:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(400))), False
    return _wire(method, path, headers, body), False


def _wire(method, path, headers, body):
    lines = [method + b" " + path + b" HTTP/1.1", *(name + b": " + value for name, value in headers), b"", b""]
    return b"\r\n".join(lines) + body


def _exchanged(address, wire, sound):
    """What comes back on a connection of its own, up to its end; one that may be waited on for more is ended soon."""
    said = bytearray()
    with socket.create_connection(address, timeout=30) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(wire)
        if not sound and not select.select([connection], [], [], 0.1)[0]:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65_536):
            said += piece
    return bytes(said)


def run_requests(count, seed, started=lambda: None):
    """Sends them all; every answer is one, none is an error of the server's, and what was answered is what was charged."""
    dice = random.Random(seed)
    app = create_app(
        answers_of, input_shape=SHAPE, reveal=Reveal(), num_classes=CLASSES, keys=["body", "wire"], max_rows=16,
    )  # fmt: skip
    answered, seen = 0, {}
    with background(app) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with RemoteVictim(url, key="wire") as victim:
            rows = np.random.default_rng(0).random((5, *SHAPE)).astype(np.float32)
            np.testing.assert_array_equal(victim(rows), answers_of(rows))
            started()
            for place in range(count):
                wire, sound = malformed_request(dice, place)
                said = _exchanged(address, wire, sound)
                head, _, body = said.partition(b"\r\n\r\n")
                if not said and (not sound or len(wire) > 65_536):  # cut off in the middle of what is too long
                    seen["closed"] = seen.get("closed", 0) + 1
                    continue
                found = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
                assert found, (place, wire[:999], said[:999])
                status = int(found[1])
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, (place, wire[:999], said[:999])
                if sound and status != 200:
                    assert set(json.loads(body)["error"]) == {"code", "message"}, (place, said[:999])
                if sound and status == 200:
                    json_body = b"application/json" in head
                    again = b"idempotent-replayed" in head.lower()
                    answers = json.loads(body)["answers"] if json_body else np.load(io.BytesIO(body))
                    answered += 0 if again else len(answers)
            np.testing.assert_array_equal(victim(rows[::-1]), answers_of(rows[::-1]))
        assert app.state.service.accounts.charged.get("key 0", 0) == answered
        assert app.state.service._pending == 0
    return seen


# ---- answers

DESCRIPTION = {
    "input_shape": list(SHAPE), "num_classes": CLASSES, "reveal": {"kind": "probabilities", "decimals": None}, "box": [0, 1],
    "dtype": "float32", "limits": {"max_rows": 64, "max_bytes": 10**6, "quota": None, "rate": None}, "idempotency": True,
}  # fmt: skip
VALUES = [
    "null", "true", "-1", "0", "1", "1.5", "1e400", "-1e400", "NaN", "Infinity", "[]", "{}", "[1]", '"x"', '"\\u001b[2J"', "1e-320",
    "[4, 4, 1]", "[[]]", "[NaN, 1]", "[1, 0]", "[0, Infinity]", '["a", "b"]', "9" * 4000, "9" * 5000, "1" + "0" * 300, '{"k": []}',
    '{"kind": []}', '{"kind": "\\u0000"}', '{"kind": "top_k", "k": "x"}', '{"kind": "label", "decimals": 0}', '{"kind": "logits"}',
    '{"decimals": Infinity}', '{"max_rows": 1e400}', '{"max_rows": []}', '{"rate": "x"}', '{"rate": NaN}', '{"\\u001b": 1}',
    '{"kind": "' + "x" * 9000 + '"}', "[" * 2000 + "]" * 2000, "[" * 30_000, "[-1]", "[true]", "[1e3]", f"[{2**80}]", '"' + "é" * 9000 + '"',
]  # fmt: skip
STATUSES = [b"200"] * 12 + [b"100", b"101", b"204", b"301", b"302", b"304", b"400", b"401", b"403", b"408", b"429", b"500", b"503",
            b"504", b"599", b"999", b"000", b"20", b"2000", b"-1", b"abc", b""]  # fmt: skip
WAITS = [b"1", b"\xb2", "²".encode(), b"-1", b"9" * 400, b"1e9", b"soon", b"Wed, 99 Foo 99999 99:99:99 GMT", b"nan", b"1" * 30,
         b"Mon, 01 Jan 0001 00:00:00 +9999", b"Fri, 31 Dec 9999 23:59:59 -2359", b",", b"0", b"\x0b7"]  # fmt: skip


def _packed(dice, body):
    for _ in range(dice.randint(1, 3)):
        body = dice.choice([gzip.compress, zlib.compress, lambda b: b + b"\x00"])(body)
    return body


def malformed_answer(dice, place):
    """(bytes on the wire, whether it answers the description)."""
    described = dice.random() < 0.35
    right = answers_of(np.random.default_rng(place).random((2, *SHAPE)).astype(np.float32))
    status, headers = b"200", []
    if described:
        changed = {name: json.dumps(value) for name, value in DESCRIPTION.items()}
        for _ in range(dice.randint(1, 2)):
            name = dice.choice([*changed, "explanation"])
            changed[name] = dice.choice(VALUES)
            if dice.random() < 0.2:
                del changed[name]
        body = ("{" + ", ".join(f'"{name}": {value}' for name, value in changed.items()) + "}").encode()
        if dice.random() < 0.15:
            body = dice.choice(
                [b"[]", b"", b"\xff", body[: dice.randrange(len(body))], b"1", b'"x"', body + b"]", b"[" * 60_000]
            )
    else:
        body = dice.choice([spoilt_npy, spoilt_npy, spoilt_numbers])(dice, right)
        if dice.random() < 0.1:
            body = npy(right)
    if dice.random() < 0.5:
        status = dice.choice(STATUSES)
    if status[:1] not in (b"2", b"1") and dice.random() < 0.5:
        message = dice.choice(
            ['"\\u001b[31mred\\u0007"', '"x\\u202ey"', "[]", "1" * 5000, '"' + "m" * 9000 + '"', "null", '"\\ud800"']
        )
        body = dice.choice(
            [f'{{"error": {{"message": {message}}}}}'.encode(), b"\x1b]0;title\x07", b"\xff\x9b2J", b"[" * 50_000]
        )
    if dice.random() < 0.3:
        headers.append(b"Retry-After: " + dice.choice(WAITS))
    if dice.random() < 0.25:
        headers.append(
            b"Content-Encoding: "
            + dice.choice([b"gzip", b"gzip, gzip, gzip", b"deflate", b"br", b"identity", b"\xff", b"zstd"])
        )
        body = _packed(dice, dice.choice([body, bytes(10**6)]))
    if dice.random() < 0.2:
        headers.append(dice.choice([
            b"Set-Cookie: \xff=\x01; expires=never; domain=..", b"Set-Cookie: a=b; max-age=" + b"9" * 400, b"Location: http://[::",
            b"Location: //\xff\x00", b"Location: " + b"x" * 3000, b"no colon", b": empty", b"X\x00: y", b"X: \x1b[2J", b"X" * 120_000 + b": y",
            b"Connection: keep-alive", b"Content-Type: text/\xff; charset=nonsense", b"Transfer-Encoding: gzip", b" folded: x",
        ]))  # fmt: skip
    way = dice.randrange(8)
    if way == 0:
        headers.append(b"Content-Length: " + dice.choice(SIZES))
    elif way == 1:
        headers.append(b"Transfer-Encoding: chunked")
        body = b"".join(
            dice.choice([b"5", b"-5", b"zz", b"fffffffff", b"5;x=\x1b"]) + b"\r\n" + body[:5] + b"\r\n"
            for _ in range(3)
        )
    elif way > 2:
        headers.append(b"Content-Length: " + str(len(body)).encode())
    first = dice.choice([b"HTTP/1.1 "] * 12 + [b"HTTP/1.0 ", b"HTTP/9.9 ", b"ICY ", b"\x00", b"HTTP/1.1"])
    reason = dice.choice([b" OK", b"", b" \x1b[2J", b" \xff"])
    wire = b"\r\n".join([first + status + reason, *headers, b"", b""]) + body
    if dice.random() < 0.1:
        spoilt = bytearray(wire)
        for _ in range(dice.randint(1, 5)):
            spoilt[dice.randrange(min(len(spoilt), 200))] = dice.randrange(256)
        wire = bytes(spoilt)
    if dice.random() < 0.1:
        wire = wire[: dice.randrange(len(wire))]
    return wire, described


class Stranger:
    """Listens, reads a request and answers it with the bytes that are laid out, whatever they are."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.laid = b""
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(30)
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += connection.recv(65_536)
                head, _, body = asked.partition(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head.lower())
                while found and len(body) < int(found[1]):
                    body += connection.recv(65_536)
                connection.sendall(self.laid)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


def run_answers(count, seed, started=lambda: None):
    """Reads them all; each is an answer that passed its checks, or one of the package's own errors in printable words."""
    dice, seen = random.Random(seed), {}
    rows = np.random.default_rng(1).random((2, *SHAPE)).astype(np.float32)
    description = json.dumps(DESCRIPTION).encode()
    sound = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(description) + description
    with Stranger() as stranger:
        stranger.laid = sound
        options = {"retries": 0, "max_wait": 0.0, "backoff": 0.0, "timeout": 20.0}
        with RemoteVictim(stranger.url, **options) as asked, RemoteVictim(stranger.url, **options) as described:
            started()
            for place in range(count):
                stranger.laid, description_asked = malformed_answer(dice, place)
                failure = None
                try:
                    if description_asked:
                        described._describe(None, None, False)
                    else:
                        answers = asked.request(rows, "key")
                        assert answers.shape == (2, CLASSES)
                        assert np.isfinite(answers).all()
                except Exception as error:
                    failure = error
                if failure is not None and (not isinstance(failure, EndpointError) or not str(failure).isprintable()):
                    raise AssertionError(f"answer {place}: {stranger.laid[:2000]!r}") from failure
                kind = "taken" if failure is None else type(failure).__name__
                seen[kind] = seen.get(kind, 0) + 1
            stranger.laid = sound
            described._describe(SHAPE, CLASSES, False)
    return seen


RUNS = {"requests": run_requests, "answers": run_answers}


def test_malformed_requests_are_refused():
    seen = run_requests(300, seed=0)
    assert {200, 400, 404, 415, 422} <= set(seen), seen


@pytest.mark.slow
def test_malformed_answers_are_errors_of_the_package():
    seen = run_answers(300, seed=0)
    assert {"taken", "EndpointError", "UnknownOutcomeError"} <= set(seen), seen


@pytest.mark.slow
@pytest.mark.parametrize("side", RUNS)
def test_ten_thousand(side):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-W", "error", __file__, side, "10000", "1"],
        capture_output=True,
        text=True,
        timeout=3000,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[-1]) < MOST_MB, run.stdout


def _memory(name):
    """MB of this process: VmRSS is what it has, VmHWM the most that it ever had."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


if __name__ == "__main__":
    idle = []
    print(RUNS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]), lambda: idle.append(_memory("VmRSS"))))
    print("MB above idle, at most:", _memory("VmHWM") - idle[0])
