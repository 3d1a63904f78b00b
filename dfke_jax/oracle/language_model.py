"""A language model behind an endpoint: a prompt and biases in, some of its answer out.

A row is a question, in numbers: the ids of a prompt's tokens, the ids of the tokens that get a
bias, those biases, and the number of a draw, whole and from 0 to 2³² − 1, which matters for texts
alone,

    [prompt (context) | biased tokens (biased) | biases (biased) | draw],

with −1 where a prompt is shorter or fewer tokens are biased. One form for all questions is what
ledger, codec, endpoint and client take: rows (B, W) of float64, counted one by one.

| reveal | answer | travels as |
|---|---|---|
| ``logits`` | z + b, (B, V) | ``logits`` of V columns |
| ``top_k`` | the k largest of log softmax(z + b), ids and values, (B, 2k) | ``logits`` of 2k columns |
| ``token`` | argmax of z + b, (B,) | ``label`` of V classes |
| ``text`` | a completion that is drawn by the model, (B, length) | ``logits`` of so many columns |

Source: Carlini et al., "Stealing Part of a Production Language Model", ICML 2024, section 2.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import scipy.special

from dfke_jax.core.errors import InputError
from dfke_jax.oracle.reveal import Reveal

TokenKind = Literal["logits", "top_k", "token", "text"]
_REMEMBERED = 4096


@dataclasses.dataclass(frozen=True)
class TokenQuestions:
    """What an endpoint takes.

    Attributes:
      vocabulary: V. context: most tokens of a prompt.
      biased: most tokens with a bias in a question. largest: of the size of a bias.

    Raises:
      InputError: for what means nothing.
    """

    vocabulary: int
    context: int
    biased: int = 300
    largest: float = 100.0

    def __post_init__(self):
        if self.vocabulary < 2 or self.context < 1 or self.biased < 0 or not self.largest > 0:
            raise InputError(
                "vocabulary must be at least 2, context at least 1, biased at least 0 and "
                "largest positive; got "
                f"{self.vocabulary}, {self.context}, {self.biased} and {self.largest}"
            )

    @property
    def width(self) -> int:
        """W, numbers of a row."""
        return self.context + 2 * self.biased + 1

    def rows(
        self, prompts: Any, tokens: Any = None, biases: Any = None, draws: Any = None
    ) -> np.ndarray:
        """Questions as rows (B, W).

        Args:
          prompts: (B, L) ids, L at most `context`. tokens: (B, m) ids with the biases (B, m).
          draws: (B,) numbers, for texts.

        Raises:
          InputError: for more than the endpoint takes.
        """
        prompts = np.asarray(prompts)
        rows = np.zeros((len(prompts), self.width))
        rows[:, : self.context + self.biased] = -1
        if prompts.ndim != 2 or not 0 < prompts.shape[1] <= self.context:
            raise InputError(
                f"prompts must be (B, L) with L from 1 to {self.context}, got shape {prompts.shape}"
            )
        rows[:, : prompts.shape[1]] = prompts
        if tokens is not None:
            tokens, biases = np.asarray(tokens), np.asarray(biases, np.float64)
            if tokens.shape != biases.shape or tokens.ndim != 2 or len(tokens) != len(prompts):
                raise InputError(
                    f"tokens and biases must be (B, m), got shapes {tokens.shape} and "
                    f"{biases.shape}"
                )
            if tokens.shape[1] > self.biased:
                raise InputError(
                    f"{tokens.shape[1]} biased tokens, and the endpoint takes {self.biased}"
                )
            rows[:, self.context : self.context + tokens.shape[1]] = tokens
            place = self.context + self.biased
            rows[:, place : place + tokens.shape[1]] = biases
        if draws is not None:
            rows[:, -1] = draws
        self.check(rows)
        return rows

    def parts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(prompts (B, context), tokens and biases (B, biased), draws (B,)) of checked rows."""
        ends = np.cumsum([self.context, self.biased, self.biased])
        prompts, tokens, biases, draws = np.split(rows, ends, 1)
        return (
            prompts.astype(np.int64),
            tokens.astype(np.int64),
            biases,
            draws[:, 0].astype(np.int64),
        )

    def check(self, rows: Any) -> np.ndarray:
        """The rows, if they are questions.

        Raises:
          InputError: naming what is wrong with them.
        """
        rows = np.asarray(rows)
        if (
            rows.dtype != np.float64
            or rows.ndim != 2
            or rows.shape[1] != self.width
            or not len(rows)
        ):
            raise InputError(
                f"questions are rows (B, {self.width}) of float64, got shape {rows.shape} of "
                f"{rows.dtype}"
            )
        if not np.isfinite(rows).all():
            raise InputError("questions contain NaN or infinity")
        ids = rows[:, : self.context + self.biased]
        if (ids != np.round(ids)).any() or ids.min() < -1 or ids.max() >= self.vocabulary:
            raise InputError(
                f"tokens are whole numbers from 0 to {self.vocabulary - 1}, or -1 for none"
            )
        there = ids[:, : self.context] >= 0
        if not there[:, 0].all() or (there[:, 1:] & ~there[:, :-1]).any():
            raise InputError("a prompt has at least one token, and -1 behind its last alone")
        biases = rows[:, self.context + self.biased : -1]
        if biases.size and np.abs(biases).max() > self.largest:
            raise InputError(
                f"biases are at most {self.largest:g} in size, got {np.abs(biases).max():.4g}"
            )
        if (biases[ids[:, self.context :] < 0] != 0).any():
            raise InputError("a bias belongs to a token, and is 0 where there is none")
        draws = rows[:, -1]
        if (draws != np.round(draws)).any() or draws.min() < 0 or draws.max() >= 2**32:
            raise InputError("the number of a draw is whole and lies in [0, 2^32)")
        chosen = np.sort(ids[:, self.context :], 1)
        if ((chosen[:, 1:] == chosen[:, :-1]) & (chosen[:, 1:] >= 0)).any():
            raise InputError("a token has one bias in a question")
        return rows


@dataclasses.dataclass(frozen=True)
class TokenReveal:
    """What a language model's endpoint answers; see this module.

    Attributes:
      kind: ``logits``, ``top_k``, ``token`` or ``text``.
      k: of ``top_k``; 1 is a single log-probability. length: of ``text``, in tokens.
      decimals: to which logits or log-probabilities are rounded; None for none.

    Raises:
      InputError: for what means nothing.
    """

    kind: TokenKind = "top_k"
    k: int | None = None
    length: int | None = None
    decimals: int | None = None

    def __post_init__(self):
        if self.kind not in ("logits", "top_k", "token", "text"):
            raise InputError(f"kind must be logits, top_k, token or text, not {self.kind!r}")
        for name, of in (("k", "top_k"), ("length", "text")):
            value = getattr(self, name)
            if (value is not None) != (self.kind == of) or (value is not None and value < 1):
                raise InputError(
                    f"{name} >= 1 belongs to kind={of!r} and to nothing else, got {value} for "
                    f"{self.kind!r}"
                )
        if self.decimals is not None and (self.decimals < 0 or self.kind in ("token", "text")):
            raise InputError(
                f"decimals round logits and log-probabilities, got {self.decimals} for "
                f"{self.kind!r}"
            )

    def columns(self, vocabulary: int) -> int:
        """Numbers of an answer, or classes of a token."""
        return {
            "logits": vocabulary,
            "top_k": 2 * (self.k or 0),
            "token": vocabulary,
            "text": self.length or 0,
        }[self.kind]

    @property
    def travels_as(self) -> Reveal:
        """The kind of answer in a ledger and at an endpoint."""
        return Reveal("label") if self.kind == "token" else Reveal("logits", decimals=self.decimals)


class LanguageModelOracle:
    """A language model behind an endpoint: `TokenQuestions` in, `TokenReveal` out.

    It stands in a `Metered` as it is, and behind HTTP by ``create_app(oracle,
    **oracle.endpoint_settings)``.

    Args:
      logits: tokens (B, L) of prompts of one length -> logits (B, V) of the next token. What it
        answered for a prompt is remembered for the last few thousand.
      questions, reveal: what it takes and what it answers.
      complete: (tokens (B, L), draws (B,)) -> texts (B, length), for kind ``text``.
    """

    repeatable = True
    endpoint = "language model"

    def __init__(
        self,
        logits: Callable[[np.ndarray], Any],
        questions: TokenQuestions,
        reveal: TokenReveal,
        *,
        complete: Callable[[np.ndarray, np.ndarray], Any] | None = None,
    ):
        if reveal.kind == "text" and complete is None:
            raise InputError("an endpoint of texts needs complete, which draws them")
        if reveal.k is not None and reveal.k > questions.vocabulary:
            raise InputError(f"top {reveal.k} of {questions.vocabulary} tokens")
        self.logits, self.questions, self.tokens, self.complete = (
            logits,
            questions,
            reveal,
            complete,
        )
        self.reveal = reveal.travels_as
        self.num_classes = reveal.columns(questions.vocabulary)
        self.input_shape = (questions.width,)
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    @property
    def endpoint_settings(self) -> dict[str, Any]:
        """How `create_app` serves it; further settings of that may be added."""
        return {
            "input_shape": self.input_shape,
            "reveal": self.reveal,
            "num_classes": self.num_classes,
            "box": None,
            "dtype": "float64",
        }

    def check(self, rows: Any) -> np.ndarray:
        """As `TokenQuestions.check`."""
        return self.questions.check(rows)

    def __call__(self, rows: Any) -> np.ndarray:
        """Answers, one a row.

        Raises:
          InputError: for what are no questions, or a model that answers something else than (B, V)
          finite numbers.
        """
        prompts, tokens, biases, draws = self.questions.parts(self.check(rows))
        if self.tokens.kind == "text":
            return self._texts(prompts, draws)
        values = self._prompted(prompts)
        row, column = np.nonzero(tokens >= 0)
        np.add.at(values, (row, tokens[row, column]), biases[row, column])
        if self.tokens.kind == "token":
            return values.argmax(1).astype(np.int32)
        if self.tokens.kind == "logits":
            return self._rounded(values)
        logs = values - scipy.special.logsumexp(values, axis=1, keepdims=True)
        best = np.argsort(-logs, axis=1, kind="stable")[:, : self.tokens.k]
        return np.concatenate([best, self._rounded(np.take_along_axis(logs, best, 1))], 1)

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        return values if self.tokens.decimals is None else np.round(values, self.tokens.decimals)

    def _prompted(self, prompts: np.ndarray) -> np.ndarray:
        """Logits (B, V) in float64, computed once for every prompt."""
        keys = [prompt.tobytes() for prompt in prompts]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        lengths = (prompts >= 0).sum(1)
        for length in sorted({int(lengths[i]) for i in new.values()}):
            places = [i for i in new.values() if lengths[i] == length]
            answers = np.asarray(self.logits(prompts[places, :length]), np.float64)
            if (
                answers.shape != (len(places), self.questions.vocabulary)
                or not np.isfinite(answers).all()
            ):
                raise InputError(
                    f"the model must answer finite logits ({len(places)}, "
                    f"{self.questions.vocabulary}), got {answers.shape}"
                )
            self._known.update((keys[i], answer) for i, answer in zip(places, answers, strict=True))
        values = np.stack([self._known[key] for key in keys])
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return values

    def _texts(self, prompts: np.ndarray, draws: np.ndarray) -> np.ndarray:
        assert self.complete is not None
        assert self.tokens.length is not None
        texts = np.zeros((len(prompts), self.tokens.length))
        lengths = (prompts >= 0).sum(1)
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            texts[places] = np.asarray(self.complete(prompts[places, :length], draws[places]))
        return texts


__all__ = ["LanguageModelOracle", "TokenKind", "TokenQuestions", "TokenReveal"]
