"""Logits of chosen tokens, relative to a token of reference, from whatever an endpoint reveals.

Biases cancel in differences of one answer: with the same bias B on tokens i and r,
z_i − z_r = log p_i − log p_r. What is left of the answer decides how many tokens a question serves.

| reveal | one question | rows, of n prompts and m tokens besides the reference |
|---|---|---|
| ``logits`` | all | n |
| ``top_k``, k ≥ 2 | min(k, biased) − 1 tokens | n ⌈m/(min(k, biased) − 1)⌉ |
| ``top_k``, k = 1 | one: p = 1/(1 + exp(−abs(Δ))), Δ = z_i + c_i − z_r | n m `passes` |
| ``token`` | one bit of one: whether z_i + c > z_r | n m ⌈log2(2 `range`/`precision`)⌉ |

With k = 1, p says least where Δ is far from zero; every pass asks again with the offset c_i = −Δ of
the last one, so that p is near 1/2 (`passes`, 1 where nothing is rounded).

Source: Carlini et al., ICML 2024, sections 5 and 6; Finlayson, Ren, Swayamdipta, "Logits of
API-Protected LLMs Leak Proprietary Information", 2024. Deviations: the single log-probability is that
of two biased tokens against each other, which keeps its digits where the paper's
p = 1/(1 + e^b (e^{−y} − 1)) loses them; labels are bisected for all tokens at once.
"""

import dataclasses
import math

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask
from dfke_jax.oracle.language_model import TokenQuestions, TokenReveal

_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class TokenReading:
    """How an endpoint is asked for logits.

    Attributes:
      questions, reveal: what the endpoint takes and answers.
      reference: r.
      passes: of a single log-probability; by default 1, 3 where it is rounded, and 6 to less than
        three decimals.
      precision: to which labels are bisected, in nats. range: the largest difference of logits
        that they look for.
      relative: error of the endpoint's own arithmetic, in units of the largest difference: that of
        sums in float32; 2^-8 of a model in bfloat16.

    Raises:
      InputError: for an endpoint that cannot be asked so: too few biased tokens, or biases that
      are too small.
    """

    questions: TokenQuestions
    reveal: TokenReveal
    reference: int = 0
    passes: int | None = None
    precision: float = 1e-3
    range: float = 32.0
    relative: float = 2.0**-21

    def __post_init__(self):
        if self.reveal.kind == "text":
            raise InputError("texts have no logits; compare endpoints by evaluation.same_endpoint")
        if not 0 <= self.reference < self.questions.vocabulary:
            raise InputError(
                f"the reference is a token from 0 to {self.questions.vocabulary - 1}, got "
                f"{self.reference}"
            )
        if self.reveal.kind != "logits" and self.questions.biased < 2:
            raise InputError(
                f"a token and the reference need a bias each, and the endpoint takes "
                f"{self.questions.biased} biased tokens"
            )
        if not (0 < self.precision < self.range and self.relative > 0) or (
            self.passes is not None and self.passes < 1
        ):
            raise InputError(
                "passes must be at least 1, relative positive, and precision positive and below "
                "range"
            )
        if self.reveal.kind == "token" and self.range > self.questions.largest:
            raise InputError(
                f"a range of {self.range:g} needs biases of that size, and "
                f"{self.questions.largest:g} is the largest"
            )

    @property
    def tokens_at_once(self) -> int:
        """Tokens besides the reference that one question serves."""
        if self.reveal.kind == "logits":
            return self.questions.vocabulary - 1
        return max(1, min(self.reveal.k or 1, self.questions.biased) - 1)

    @property
    def rounds(self) -> int:
        """How often a token is asked."""
        if self.reveal.kind == "token":
            return math.ceil(math.log2(2 * self.range / self.precision))
        if self.reveal.kind == "top_k" and self.reveal.k == 1:
            decimals = self.reveal.decimals
            return self.passes or (1 if decimals is None else 3 if decimals > 2 else 6)
        return 1

    def cost(self, prompts: int, tokens: int) -> int:
        """Rows for so many prompts and tokens besides the reference."""
        if self.reveal.kind == "logits":
            return prompts
        return prompts * math.ceil(tokens / self.tokens_at_once) * self.rounds

    @property
    def unit(self) -> float:
        """How far apart rounding leaves two differences; 0 where nothing is rounded."""
        if self.reveal.kind == "token":
            return 2 * self.range / 2**self.rounds
        return 0.0 if self.reveal.decimals is None else 10.0**-self.reveal.decimals

    def read(self, ask: Ask, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """z_i − z_r (n, m) of tokens (m,), none of them the reference, behind prompts (n, L).

        Raises:
          InputError: for answers of another form, or biases too small to bring tokens to the top.
        """
        if self.reveal.kind == "logits":
            answers = np.asarray(self._asked(ask, self.questions.rows(prompts)), np.float64)
            if answers.shape != (len(prompts), self.questions.vocabulary):
                raise InputError(
                    f"logits must be (B, {self.questions.vocabulary}), got shape {answers.shape}"
                )
            return answers[:, tokens] - answers[:, [self.reference]]
        if self.reveal.kind == "token":
            return self._bisected(ask, prompts, tokens)
        return (
            self._single(ask, prompts, tokens)
            if self.tokens_at_once == 1 and self.reveal.k == 1
            else self._listed(ask, prompts, tokens)
        )

    def _asked(self, ask: Ask, rows: np.ndarray) -> np.ndarray:
        parts = [
            np.asarray(ask(rows[start : start + _CHUNK])) for start in range(0, len(rows), _CHUNK)
        ]
        return np.concatenate(parts)

    def _listed(self, ask: Ask, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """From the k largest: so many tokens and the reference, all with the largest bias."""
        size = self.tokens_at_once
        groups = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        found = np.zeros((len(prompts), len(tokens)))
        # of the last group fewer may be left: it is asked with fewer
        for group_of, start in (
            (groups[: len(tokens) // size], 0),
            (groups[len(tokens) // size :], len(tokens) // size * size),
        ):
            if not group_of:
                continue
            chosen = np.array([[self.reference, *group] for group in group_of])
            every = np.tile(chosen, (len(prompts), 1))
            rows = self.questions.rows(
                np.repeat(prompts, len(chosen), 0),
                every,
                np.full(every.shape, self.questions.largest),
            )
            logs = self._logs(self._asked(ask, rows), every)
            differences = logs[:, 1:] - logs[:, :1]
            found[:, start : start + chosen[:, 1:].size] = differences.reshape(len(prompts), -1)
        return found

    def _logs(self, answers: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """log p (B, m) of tokens (B, m), from ids and values (B, 2k)."""
        k = self.reveal.k or 0
        if answers.ndim != 2 or answers.shape[1] != 2 * k:
            raise InputError(
                f"answers must be {k} ids and {k} log-probabilities a row, got shape "
                f"{answers.shape}"
            )
        ids, logs = np.split(np.asarray(answers, np.float64), 2, 1)
        same = ids[:, None, :] == chosen[:, :, None]
        if not same.any(2).all():
            raise InputError(
                f"a bias of {self.questions.largest:g} does not bring every biased token among "
                f"the {k} most probable"
            )
        return (same * logs[:, None, :]).sum(2)

    def _single(self, ask: Ask, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        pairs = np.tile(
            np.stack([np.full(len(tokens), self.reference), tokens], 1), (len(prompts), 1)
        )
        asked = np.repeat(prompts, len(tokens), 0)
        offset = np.zeros(len(pairs))
        least = 0.5 * 10.0 ** -(self.reveal.decimals if self.reveal.decimals is not None else 15)
        half = self.questions.largest / 2
        for _ in range(self.rounds):
            offset = np.clip(offset, -half, half)
            biases = np.stack([half - offset / 2, half + offset / 2], 1)
            answers = self._asked(ask, self.questions.rows(asked, pairs, biases))
            if answers.ndim != 2 or answers.shape[1] != 2:
                raise InputError(
                    f"answers must be an id and its log-probability, got shape {answers.shape}"
                )
            first = answers[:, 0] == pairs[:, 0]
            if not (first | (answers[:, 0] == pairs[:, 1])).all():
                raise InputError(f"a bias of {half:g} does not bring a biased token to the top")
            # y = −log(1 + exp(−|Δ|)), at least −log 2; of a zero the last digit is guessed
            y = np.clip(answers[:, 1], -math.log(2), -least)
            delta = -np.log(np.expm1(-y))
            offset = offset - np.where(first, -delta, delta)
        return -offset.reshape(len(prompts), len(tokens))

    def _bisected(self, ask: Ask, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        pairs = np.tile(
            np.stack([np.full(len(tokens), self.reference), tokens], 1), (len(prompts), 1)
        )
        asked = np.repeat(prompts, len(tokens), 0)
        low, high = np.full(len(pairs), -self.range), np.full(len(pairs), self.range)
        top = self.questions.largest
        for _ in range(self.rounds):
            middle = (low + high) / 2  # i wins against r where z_i − z_r > middle
            biases = np.stack([top + np.minimum(middle, 0), top - np.maximum(middle, 0)], 1)
            answers = self._asked(ask, self.questions.rows(asked, pairs, biases))
            wins = answers == pairs[:, 1]
            if answers.ndim != 1 or not (wins | (answers == pairs[:, 0])).all():
                raise InputError(f"a bias of {top:g} does not bring a biased token to the top")
            low, high = np.where(wins, middle, low), np.where(wins, high, middle)
        if (low == -self.range).any() or (high == self.range).any():
            raise InputError(f"logits differ by more than {self.range:g}: a larger range is needed")
        return ((low + high) / 2).reshape(len(prompts), len(tokens))


__all__ = ["TokenReading"]
