"""An endpoint of a language model: which rows are questions, and what it answers to them."""

import numpy as np
import pytest
import scipy.special

from dfke_jax.core.errors import InputError
from dfke_jax.oracle import LanguageModelOracle, TokenQuestions, TokenReveal

V, CONTEXT, BIASED = 6, 4, 2
QUESTIONS = TokenQuestions(V, CONTEXT, BIASED, largest=10)
TABLE = np.random.default_rng(0).normal(size=(V, V))
PROMPTS = np.array([[1, 2], [3, 5], [1, 2]])


def logits(tokens):
    """Of the mean of the tokens' rows, so that prompts of any length have some."""
    return TABLE[tokens].mean(1)


def oracle(*reveal, **options):
    return LanguageModelOracle(logits, QUESTIONS, TokenReveal(*reveal), **options)


def changed(place, value):
    rows = QUESTIONS.rows(PROMPTS, np.array([[0, 4]] * 3), np.ones((3, 2)), np.arange(3))
    rows[1, place] = value
    return rows


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, np.nan, "NaN or infinity"),
        (0, 0.5, "tokens are whole numbers"),
        (0, V, "tokens are whole numbers"),
        (1, -2, "tokens are whole numbers"),
        (0, -1, "a prompt has at least one token"),
        (3, 1, "-1 behind its last alone"),
        (CONTEXT, 4, "a token has one bias"),
        (CONTEXT, -1, "a bias belongs to a token"),
        (CONTEXT + BIASED, 10.5, "at most 10 in size, got 10.5"),
        (-1, 0.5, "the number of a draw is whole"),
        (-1, -1, "the number of a draw is whole"),
        (-1, 2**32, "the number of a draw is whole"),
    ],
)
def test_what_is_no_question_is_refused(place, value, said):
    assert QUESTIONS.check(changed(-1, 2**32 - 1)) is not None
    with pytest.raises(InputError, match=said):
        QUESTIONS.check(changed(place, value))
    with pytest.raises(InputError, match=said):
        oracle("token")(changed(place, value))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.zeros((2, CONTEXT + 1)),), r"prompts must be \(B, L\)"),
        ((PROMPTS, np.zeros((3, 1)), np.zeros((3, 2))), "tokens and biases must be"),
        ((PROMPTS, np.zeros((2, 1)), np.zeros((2, 1))), "tokens and biases must be"),
        ((PROMPTS, np.array([[0, 1, 2]] * 3), np.zeros((3, 3))), "3 biased tokens, and the endpoint takes 2"),
    ],
)
def test_rows_are_not_made_of_more_than_the_endpoint_takes(arguments, said):
    with pytest.raises(InputError, match=said):
        QUESTIONS.rows(*arguments)


def test_rows_of_another_type_or_width_are_no_questions():
    rows = QUESTIONS.rows(PROMPTS)
    for wrong in (rows.astype(np.float32), rows[:, :-1], rows[0], rows[:0]):
        with pytest.raises(InputError, match="questions are rows"):
            QUESTIONS.check(wrong)


def test_answers_are_the_formulas():
    """z + b, its largest log-probabilities, its arg-max; rounded where the endpoint rounds."""
    tokens, biases = np.array([[0, 4], [5, 2], [3, 1]]), np.array([[2.0, -1], [0.5, 3], [-4, 1]])
    rows = QUESTIONS.rows(PROMPTS, tokens, biases)
    wanted = np.array([TABLE[prompt].mean(0) for prompt in PROMPTS])
    for i in range(3):
        for token, bias in zip(tokens[i], biases[i], strict=True):
            wanted[i, token] += bias
    np.testing.assert_allclose(oracle("logits")(rows), wanted, rtol=1e-12)
    np.testing.assert_array_equal(oracle("logits", None, None, 1)(rows), np.round(wanted, 1))
    np.testing.assert_array_equal(oracle("token")(rows), wanted.argmax(1))
    logs = np.log(scipy.special.softmax(wanted, 1))
    answers = oracle("top_k", 2)(rows)
    for i in range(3):
        best = sorted(range(V), key=lambda token: -logs[i, token])[:2]
        np.testing.assert_allclose(answers[i], [*best, *logs[i, best]], rtol=1e-10)


def test_a_prompt_is_computed_once_and_prompts_of_any_length_together():
    asked = []

    def counted(tokens):
        asked.extend(map(tuple, tokens))
        return logits(tokens)

    one = LanguageModelOracle(counted, QUESTIONS, TokenReveal("logits"))
    rows = np.concatenate([QUESTIONS.rows(PROMPTS), QUESTIONS.rows(np.array([[4, 0, 1]]))])
    np.testing.assert_allclose(one(rows)[3], TABLE[[4, 0, 1]].mean(0))
    one(rows[::-1])
    assert sorted(asked) == [(1, 2), (3, 5), (4, 0, 1)]


def test_texts_come_with_the_prompt_and_the_number_of_their_draw():
    complete = lambda tokens, draws: np.stack([tokens.sum(1), draws], 1)
    one = oracle("text", None, 2, complete=complete)
    rows = QUESTIONS.rows(PROMPTS, draws=np.array([7, 2**32 - 1, 0]))
    np.testing.assert_array_equal(one(rows), [[3, 7], [8, 2**32 - 1], [3, 0]])
    with pytest.raises(InputError, match="needs complete"):
        oracle("text", None, 2)


@pytest.mark.parametrize(
    ("reveal", "said"),
    [
        (("sounds",), "kind must be"),
        (("top_k",), "k >= 1 belongs"),
        (("token", 3), "k >= 1 belongs"),
        (("text", None, 0), "length >= 1 belongs"),
        (("token", None, None, 2), "decimals round"),
        (("logits", None, None, -1), "decimals round"),
    ],
)
def test_reveals_that_mean_nothing_are_refused(reveal, said):
    with pytest.raises(InputError, match=said):
        TokenReveal(*reveal)


def test_more_tokens_than_there_are_and_models_that_answer_nothing_are_refused():
    with pytest.raises(InputError, match="top 7 of 6"):
        oracle("top_k", 7)
    for broken in (lambda tokens: logits(tokens)[:, 1:], lambda tokens: np.nan * logits(tokens)):
        with pytest.raises(InputError, match="must answer finite logits"):
            LanguageModelOracle(broken, QUESTIONS, TokenReveal("logits"))(QUESTIONS.rows(PROMPTS))
