"""DAWN: a few queries, chosen by a secret key, get a wrong answer; who trains on the answers marks
his own model.

A keyed hash cannot be traced by JAX, so this defence is a host oracle around another one and the
last thing before the wire: `DawnOracle` goes wherever a `HostOracle` goes
(``against(attack, dawn)``, `Metered`, ``create_app(dawn, reveal=dawn.reveal, ...)``).
"""

import base64
import hmac
import json
import math
import os
import secrets
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.oracle.oracle import Oracle
from dfke_jax.oracle.reveal import Reveal
from dfke_jax.watermarking.commitments import MarkCommitment, mark_assumptions
from dfke_jax.watermarking.evidence import (
    Evidence,
    answered,
    binomial_evidence,
    random_label_evidence,
)

_DOMAIN = b"dfke_jax/dawn/1\x00"
_FORMAT = {"format": "dfke_jax marked queries", "version": 1}
_WHOLE = 1 << 64


def dawn_key() -> bytes:
    """32 bytes from the operating system's source of secrets."""
    return secrets.token_bytes(32)


def quantised(rows: Any, levels: int = 256, box: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """round((x − low)/(high − low)·(levels − 1)) as uint8, outside values clipped: what an image
    file with so many levels keeps.

    Args:
      rows: (B, ...) floats in the box, or uint8 pixels 0–255 of it. levels: 2 to 256. box: (low,
        high).

    Raises:
      InputError: for NaN, or levels that do not fit a byte.
    """
    rows = np.asarray(rows)
    if not 2 <= levels <= 256:
        raise InputError(f"levels must lie in [2, 256], got {levels}")
    shares = (
        rows / 255.0
        if rows.dtype == np.uint8
        else (rows.astype(np.float64) - box[0]) / (box[1] - box[0])
    )
    if not np.isfinite(shares).all():
        raise InputError("rows contain NaN or infinity")
    # no n/255 lies half-way between two levels, however many there are: float32 pixels fall where
    # their bytes fall
    return np.clip(np.rint(shares * (levels - 1)), 0, levels - 1).astype(np.uint8)


class RegisteredMarks(NamedTuple):
    """Marked queries for verification.

    Attributes:
      images: (T, H, W, C) float32 in the box, at 256 levels.
      labels: (T,) the wrong answers. truth: (T,) what the victim says itself.
    """

    images: np.ndarray
    labels: np.ndarray
    truth: np.ndarray


class MarkedQueries:
    """Every marked query once, in memory or in a file that is only appended to.

    The file has one JSON object a line and is synchronised before the answer leaves; a line that
    was cut off by a crash is skipped. One process writes to it.

    Args:
      path: of the file, created if absent; None for memory.

    Raises:
      InputError: for a file that is none of these, or a damaged line before the last.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = None if path is None else Path(path)
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._torn = False
        if self.path is not None:
            self._open(self.path)

    def _open(self, path: Path) -> None:
        try:
            content = path.read_bytes() if path.exists() else b""
            if not content:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._append(path, [_FORMAT])
                return
        except OSError as error:
            raise InputError(
                f"cannot use {path} as a registry of marked queries: {error}"
            ) from error
        header, *lines, last = content.split(b"\n") if b"\n" in content else (b"", content)
        if header != json.dumps(_FORMAT).encode():
            raise InputError(f"{path} is no registry of marked queries; choose another path")
        self._torn = bool(last)
        for number, line in enumerate(lines, 2):
            try:
                entry = json.loads(line)
                self._entries[entry["name"]] = {
                    name: entry[name] for name in ("pixels", "shape", "label", "truth")
                }
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith(b"}"):  # cut off by a crash, and gone on from
                    continue
                raise InputError(
                    f"line {number} of the registry {path} is damaged ({error})"
                ) from error

    def _append(self, path: Path, entries: list[dict[str, Any]]) -> None:
        with path.open("ab") as file:
            file.write(
                b"\n" * self._torn
                + b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
            )
            file.flush()
            os.fsync(file.fileno())
        self._torn = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self, names: list[str], pixels: np.ndarray, labels: np.ndarray, truth: np.ndarray
    ) -> int:
        """Enters queries that are not there yet; returns how many were new.

        Args:
          names: (T,) what identifies them. pixels: (T, H, W, C) uint8. labels, truth: (T,) as in
            `RegisteredMarks`.
        """
        with self._lock:
            new: dict[str, dict[str, Any]] = {}
            for name, image, label, true in zip(names, pixels, labels, truth, strict=True):
                if name not in self._entries and name not in new:
                    data = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()
                    new[name] = {
                        "pixels": data,
                        "shape": list(image.shape),
                        "label": int(label),
                        "truth": int(true),
                    }
            if new and self.path is not None:
                self._append(self.path, [{"name": name, **entry} for name, entry in new.items()])
            self._entries.update(new)
        return len(new)

    def marks(self, box: tuple[float, float] = (0.0, 1.0)) -> RegisteredMarks:
        """What was entered, in that order, with pixels in the box.

        Raises:
          InputError: when nothing was.
        """
        entries = list(self._entries.values())
        if not entries:
            raise InputError("no query was marked yet; there is nothing to verify with")
        pixels = [
            np.frombuffer(base64.b64decode(e["pixels"]), np.uint8).reshape(e["shape"])
            for e in entries
        ]
        images = (box[0] + np.stack(pixels) * ((box[1] - box[0]) / 255)).astype(np.float32)
        return RegisteredMarks(
            images, *(np.array([e[name] for e in entries]) for name in ("label", "truth"))
        )


class DawnOracle:
    """An oracle whose answers to a keyed share of all inputs are wrong, always in the same way.

    d = HMAC-SHA256(key, canonical x), over every pixel. The first 64 bits of d decide: below
    ⌊r·2⁶⁴⌋ the input is marked. The next 64 bits choose the label, uniformly among the K − 1 that
    the victim does not answer; in an answer of numbers the victim's class and that label change
    places. A marked query is registered before its answer leaves.

    Canonical is x quantised to `levels`: at 256, float noise of less than half a grey level around
    stored pixels changes nothing. A client who moves one pixel by a grey level asks, to the key,
    another input, and may try until two answers differ. Fewer levels, or a `mapping` into a space
    where neighbours fall together (the paper's answer), make that costlier; whatever lies at the
    edge of a level crosses it all the same.

    Args:
      oracle: answers rows (B, H, W, C): an `Oracle` or `HostOracle`, a `RemoteVictim`, or any
        function with what follows.
      key: at least 16 secret bytes; see `dawn_key`.
      rate: r, the share of marked inputs, in (0, 1).
      registry: where marked queries go; a new one in memory by default.
      levels: 2 to 256, of the canonical form.
      mapping: rows (B, H, W, C) -> numbers (B, ...) in the box, quantised in the place of the rows.
      reveal, num_classes, input_shape, box: of the oracle where it does not say them itself.

    Raises:
      InputError: for a short key, a rate outside (0, 1), or an oracle that does not say what it
        answers.

    Source: Szyller, Atli, Marchal and Asokan, DAWN, ACM Multimedia 2021, section 4. Deviations: the
    paper's released filter compares 16 bits, and hashes 25 bytes of the input; here 64, and all of
    them. The paper shuffles all numbers of a marked answer; here two change places, which leaves
    the rest plausible.
    """

    on_host = True

    def __init__(
        self,
        oracle: Callable[[Any], Any],
        key: bytes,
        *,
        rate: float = 0.005,
        registry: MarkedQueries | None = None,
        levels: int = 256,
        mapping: Callable[[np.ndarray], Any] | None = None,
        reveal: Reveal | None = None,
        num_classes: int | None = None,
        input_shape: tuple[int, int, int] | None = None,
        box: tuple[float, float] | None = None,
    ):
        if not isinstance(key, bytes | bytearray) or len(key) < 16:
            raise InputError("key must be at least 16 secret bytes; dawn_key() draws them")
        if not 0 < rate < 1:
            raise InputError(f"rate must lie in (0, 1), got {rate}")
        quantised(np.zeros(1), levels)
        found = {
            "reveal": reveal or getattr(oracle, "reveal", None),
            "num_classes": num_classes or getattr(oracle, "num_classes", None),
            "input_shape": input_shape or getattr(oracle, "input_shape", None),
        }
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise InputError(
                f"this oracle does not say its {', '.join(missing)}; give {'=, '.join(missing)}="
            )
        if found["num_classes"] < 2:
            raise InputError(f"a wrong label needs at least 2 classes, got {found['num_classes']}")
        self.oracle, self.rate, self.levels, self.mapping = oracle, rate, levels, mapping
        self.registry = MarkedQueries() if registry is None else registry
        self.reveal: Reveal = found["reveal"]
        self.num_classes: int = found["num_classes"]
        self.input_shape = tuple(found["input_shape"])
        self.box = box or getattr(oracle, "box", None) or (0.0, 1.0)
        self._key = bytes(key)
        self._below = int(rate * _WHOLE)

    def digests(self, rows: Any) -> list[bytes]:
        """HMAC-SHA256 of every row's canonical form with its shape: 32 bytes each."""
        rows = self._checked(rows)
        if self.mapping is not None:
            rows = np.asarray(self.mapping(rows))
        canonical = quantised(rows, self.levels, self.box)
        head = _DOMAIN + struct.pack(
            f"<{canonical.ndim}Q", canonical.ndim - 1, *canonical.shape[1:]
        )
        return [hmac.digest(self._key, head + row.tobytes(), "sha256") for row in canonical]

    def marked(self, rows: Any) -> np.ndarray:
        """(B,) bool: which rows are answered wrongly. Asks nobody and registers nothing."""
        return np.array([self._decides(digest) for digest in self.digests(rows)], bool)

    def _decides(self, digest: bytes) -> bool:
        return int.from_bytes(digest[:8], "big") < self._below

    def _checked(self, rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.ndim != 4 or rows.shape[1:] != self.input_shape:
            raise InputError(
                f"rows must be (B, {', '.join(map(str, self.input_shape))}), got shape {rows.shape}"
            )
        return rows

    def __call__(self, rows: Any) -> np.ndarray:
        """(B, H, W, C) -> answers as the oracle gives them, those of marked rows wrong.

        Raises:
          InputError: rows of another shape or with NaN, and what the oracle raises.
        """
        rows = self._checked(rows)
        digests = self.digests(rows)
        asked = (
            _compiled(self.oracle, rows) if isinstance(self.oracle, Oracle) else self.oracle(rows)
        )
        answers = np.array(asked)
        places = np.array([i for i, digest in enumerate(digests) if self._decides(digest)], int)
        if not len(places):
            return answers
        truth = answers[places] if answers.ndim == 1 else answers[places].argmax(1)
        labels = self._wrong([digests[place] for place in places], truth)
        names = [digests[place].hex() for place in places]
        self.registry.add(names, quantised(rows[places], 256, self.box), labels, truth)
        if answers.ndim == 1:
            answers[places] = labels
        else:
            answers[places, truth], answers[places, labels] = (
                answers[places, labels],
                answers[places, truth],
            )
        return answers

    def _wrong(self, digests: list[bytes], truth: np.ndarray) -> np.ndarray:
        turns = [int.from_bytes(digest[8:16], "big") % (self.num_classes - 1) for digest in digests]
        return (truth + 1 + np.array(turns, int)) % self.num_classes

    def follows(self, marks: "RegisteredMarks") -> np.ndarray:
        """(T,) bool: which entries the key and the victim give, asked anew: marked, with this truth
        and this label.

        An entry can be written into a registry afterwards, with a truth that makes its label what a
        suspect answers; it does not follow. Nor does, now and then, an honest one of an image with
        finer levels than 256 under fewer `levels`, or of a victim that does not repeat itself.
        Nothing is registered; the victim is asked T rows.

        Args:
          marks: of `MarkedQueries.marks`.

        Raises:
          InputError: rows of another shape.
        """
        rows = self._checked(marks.images)
        answers = np.array(
            _compiled(self.oracle, rows) if isinstance(self.oracle, Oracle) else self.oracle(rows)
        )
        truth = answers if answers.ndim == 1 else answers.argmax(1)
        digests = self.digests(rows)
        marked = np.array([self._decides(digest) for digest in digests], bool)
        return marked & (truth == marks.truth) & (self._wrong(digests, truth) == marks.labels)

    def describe(self) -> dict[str, Any]:
        """As the oracle's, with this defence at the end of the list; without the key."""
        inner = getattr(self.oracle, "describe", dict)()
        mine = {
            "name": "dawn",
            "rate": self.rate,
            "levels": self.levels,
            "mapping": self.mapping is not None,
        }
        return {**inner, "defences": [*inner.get("defences", []), mine]}


@jax.jit
def _compiled(oracle: Oracle, rows: Any) -> Any:
    return oracle(rows)


def false_claim_probability(size: int, num_classes: int, threshold: float = 0.5) -> float:
    """P(an innocent model mismatches at most e·|T| times) = Σ_{i ≤ e|T|} C(|T|, i) ((K−1)/K)^i
    (1/K)^{|T|−i}.

    Args:
      size: |T| ≥ 1. num_classes: K. threshold: e in (0, 1).

    Raises:
      InputError: for numbers outside their range.

    Source: Szyller et al. 2021, section 5.2; innocent answers are taken as uniform over the K
    labels. In fact they are mostly right, and a keyed wrong label is matched more rarely.
    """
    if size < 1 or num_classes < 2 or not 0 < threshold < 1:
        raise InputError(
            f"size >= 1, num_classes >= 2 and threshold in (0, 1) are needed, got {size}, "
            f"{num_classes}, {threshold}"
        )
    allowed = math.floor(threshold * size + 1e-9)
    return binomial_evidence(size - allowed, size, 1 / num_classes).p_value


class DawnVerdict(NamedTuple):
    """What the registered queries say of a suspect.

    Attributes:
      stolen: whether it mismatches less often than the threshold.
      mismatch_rate: share of registered queries that it does not answer with the wrong label.
      false_claim_probability: of this rule, for so many queries.
      evidence: the exact test of the keyed labels, given where the suspect departs from the victim
        (`random_label_evidence`); with two classes against the same binomial as the rule, because
        nothing is drawn. It sees marks that the rule misses.
      refused: entries that the key and the victim do not give, which count for nothing; None where
        neither was asked.
      assumes: what has to be true for the p-values to mean what they say.
    """

    stolen: bool
    mismatch_rate: float
    false_claim_probability: float
    evidence: Evidence
    refused: int | None = None
    assumes: tuple[str, ...] = ()


def verify_dawn(
    suspect: Any,
    marks: RegisteredMarks,
    num_classes: int,
    threshold: float = 0.5,
    *,
    dawn: DawnOracle | None = None,
    commitment: MarkCommitment | None = None,
) -> DawnVerdict:
    """Asks a suspect the registered queries.

    Queries of innocent clients are registered too: judge a suspect by those of the client who is
    accused.

    Args:
      suspect: a `Classifier`, an oracle, or a function images -> scores or labels.
      marks: of `MarkedQueries.marks`, or a part of them. num_classes: K. threshold: e.
      dawn: the defence with its key and victim; what they do not give is left out
        (`DawnOracle.follows`). Without it labels and truths are the owner's word, and he could have
        written them after the suspect: the verdict says so.
      commitment: of `commit_mark(marks)`, published before the suspect was. Without it an owner can
        choose, among the queries that key and victim do give, those that a suspect happens to
        answer as marked: the verdict says so.

    Raises:
      InputError: where no entry is left, or the marks do not open the commitment.
    """
    assumes = list(mark_assumptions(marks, commitment))
    if commitment is None:
        assumes.append(
            "the registered queries are all that were marked; none was picked for what the suspect "
            "answers"
        )
    refused = None
    if dawn is None:
        assumes.append("labels and truths are what key and victim gave; they were not recomputed")
    else:
        kept = dawn.follows(marks)
        refused = int((~kept).sum())
        if not kept.any():
            raise InputError(
                f"none of the {len(kept)} registered queries is what this key and this victim give"
            )
        marks = RegisteredMarks(*(np.asarray(part)[kept] for part in marks))
        assumes.append("key and victim are those that served; entries were recomputed from them")
    answers = answered(suspect, marks.images, num_classes)
    matches = answers == marks.labels
    if num_classes > 2:
        evidence = random_label_evidence(answers, marks.labels, marks.truth, num_classes)
    else:
        evidence = binomial_evidence(int(matches.sum()), len(matches), 0.5)
    mismatch = 1 - float(matches.mean())
    chance = false_claim_probability(len(matches), num_classes, threshold)
    return DawnVerdict(mismatch < threshold, mismatch, chance, evidence, refused, tuple(assumes))


__all__ = [
    "DawnOracle",
    "DawnVerdict",
    "MarkedQueries",
    "RegisteredMarks",
    "dawn_key",
    "false_claim_probability",
    "quantised",
    "verify_dawn",
]
