"""A language model's last layer: widths, layers and outputs against the model's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import TokenReading, complete_outputs, last_layer
from dfke_jax.nn import ByteTransformer, LanguageModel, train_language_model
from dfke_jax.oracle import (
    LanguageModelOracle,
    Ledger,
    Metered,
    RemoteVictim,
    TokenQuestions,
    TokenReveal,
    background,
    create_app,
)

V, H = 24, 6
QUESTIONS = TokenQuestions(V, 5, 4)


def states(prompts, width=H):
    """(B, width) of prompts, other ones for other prompts."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(prompts.shape[1], V, width))
    return np.tanh(sum(table[place, prompts[:, place]] for place in range(prompts.shape[1])))


WEIGHTS = 2 * np.random.default_rng(1).normal(size=(V, H))


def logits(prompts):
    return states(prompts) @ WEIGHTS.T


REVEALS = {
    "logits": TokenReveal("logits"),
    "five log-probabilities": TokenReveal("top_k", 5),
    "one log-probability": TokenReveal("top_k", 1),
    "a token": TokenReveal("token"),
}


def reading_of(reveal, questions=QUESTIONS, **settings):
    return TokenReading(questions, reveal, reference=3, precision=1e-5, **settings)


@pytest.mark.parametrize("name", REVEALS)
def test_width_and_layer_from_every_kind_of_answer(name):
    """The rows are those of the formula, the width is exact, the layer is the model's."""
    reading = reading_of(REVEALS[name])
    with Ledger() as ledger:
        metered = Metered(LanguageModelOracle(logits, QUESTIONS, REVEALS[name]), ledger)
        solution = core.run_host(last_layer(reading, 12), metered, 0)
        assert ledger.counts()["rows"] == solution.queries == reading.cost(12, V - 1)
    found = solution.found
    assert found.size == H
    assert found.refusal == ""
    assert found.aligned(WEIGHTS)[1] < (1e-5 if name == "a token" else 1e-9)
    assert found.gap > 5


def test_costs_are_those_of_counting():
    assert reading_of(REVEALS["logits"]).cost(7, 23) == 7
    assert (
        reading_of(REVEALS["five log-probabilities"]).cost(7, 23) == 7 * 8
    )  # four biased tokens: three and the reference
    assert reading_of(REVEALS["one log-probability"]).cost(7, 23) == 7 * 23
    assert reading_of(REVEALS["a token"], range=8.0).cost(7, 23) == 7 * 23 * 21  # 16/2^21 < 1e-5


@pytest.mark.parametrize("name", REVEALS)
def test_outputs_of_further_prompts_cost_as_many_tokens_as_the_width(name):
    reading = reading_of(REVEALS[name])
    oracle = LanguageModelOracle(logits, QUESTIONS, REVEALS[name])
    found = core.run_host(last_layer(reading, 12), oracle, 0).found
    prompts = np.random.default_rng(5).integers(0, V, (3, 5))
    solution = core.run_host(complete_outputs(reading, found, prompts), oracle, 0)
    truth = logits(prompts)
    np.testing.assert_allclose(
        solution.found, truth - truth.mean(1, keepdims=True), atol=2e-3 if name == "a token" else 1e-9
    )
    assert solution.queries == reading.cost(3, H)
    np.testing.assert_allclose(found.signature(truth), 0, atol=1e-4)
    other = states(prompts) @ np.random.default_rng(2).normal(size=(H, V))
    assert found.signature(other).min() > 0.4


@pytest.mark.parametrize(("decimals", "prompts"), [(4, 12), (1, 200)])
@pytest.mark.parametrize("name", ["logits", "five log-probabilities", "one log-probability"])
def test_rounding_does_not_hide_the_width(name, decimals, prompts):
    reveal = dataclasses.replace(REVEALS[name], decimals=decimals)
    oracle = LanguageModelOracle(logits, QUESTIONS, reveal)
    found = core.run_host(last_layer(reading_of(reveal), prompts), oracle, 0).found
    assert found.size == H
    if decimals == 4:
        assert found.aligned(WEIGHTS)[1] < 1e-4


def test_no_width_is_named_where_rounding_or_too_few_prompts_hide_it():
    small = lambda prompts: 0.2 * logits(prompts)
    for reveal, prompts, why in (
        (TokenReveal("logits", decimals=0), 12, "no certain number"),
        (TokenReveal("logits"), H, "more prompts"),
    ):
        reading = reading_of(reveal)
        found = core.run_host(last_layer(reading, prompts), LanguageModelOracle(small, QUESTIONS, reveal), 0).found
        assert found.size is None
        assert why in found.refusal
        with pytest.raises(InputError, match="not known"):
            complete_outputs(reading, found, np.zeros((1, 5), int))


def test_noise_of_the_size_of_the_rounding_stays_below_the_level():
    """The level of the certificate against rounding: no singular value of noise exceeds it."""
    for name in ("logits", "five log-probabilities", "one log-probability"):
        reveal = dataclasses.replace(REVEALS[name], decimals=2)
        found = core.run_host(
            last_layer(reading_of(reveal), 60), LanguageModelOracle(logits, QUESTIONS, reveal), 0
        ).found
        assert found.singular_values[H] < found.level < 4 * found.singular_values[H]


def test_what_an_endpoint_does_not_take_is_said():
    with pytest.raises(InputError, match="takes 1 biased"):
        reading_of(REVEALS["a token"], TokenQuestions(V, 5, 1))
    with pytest.raises(InputError, match="largest"):
        reading_of(REVEALS["a token"], TokenQuestions(V, 5, 4, largest=10))
    weak = TokenQuestions(V, 5, 4, largest=0.1)
    oracle = LanguageModelOracle(logits, weak, REVEALS["five log-probabilities"])
    with pytest.raises(InputError, match="does not bring"):
        core.run_host(last_layer(reading_of(REVEALS["five log-probabilities"], weak), 12), oracle, 0)
    constant = LanguageModelOracle(lambda prompts: np.ones((len(prompts), V)), QUESTIONS, REVEALS["logits"])
    with pytest.raises(InputError, match="the same for all"):
        core.run_host(last_layer(reading_of(REVEALS["logits"]), 12), constant, 0)
    # a cap below k: fewer tokens a question, and more of them
    assert reading_of(TokenReveal("top_k", 20)).tokens_at_once == 3


def test_over_http_it_is_the_same_to_the_row():
    reveal = REVEALS["five log-probabilities"]
    oracle, reading = LanguageModelOracle(logits, QUESTIONS, reveal), reading_of(reveal)
    app = create_app(oracle, **oracle.endpoint_settings)
    with background(app) as url, RemoteVictim(url) as remote, Ledger() as ledger:
        solution = core.run_host(last_layer(reading, 12), Metered(remote, ledger), 0)
        assert remote.usage()["rows"] == ledger.counts()["rows"] == solution.queries == reading.cost(12, V - 1)
    local = core.run_host(last_layer(reading, 12), oracle, 0)
    np.testing.assert_array_equal(solution.found.layer, local.found.layer)
    assert solution.found.size == H


@pytest.mark.slow
def test_a_transformer_has_the_width_of_its_states():
    module = ByteTransformer(40, 8, 1, 2, 6)
    parameters = module.init(jax.random.key(0), jnp.zeros((1, 6), jnp.int32))["params"]
    model, questions = LanguageModel(module, parameters), TokenQuestions(40, 6, 4)
    reading = TokenReading(questions, TokenReveal("top_k", 3))
    oracle = LanguageModelOracle(model.logits, questions, TokenReveal("top_k", 3))
    found = core.run_host(last_layer(reading, 24), oracle, 0).found
    assert found.size == 8
    assert found.aligned(model.last_layer)[1] < 1e-5


@pytest.mark.slow
def test_a_model_of_hugging_face_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    from dfke_jax.oracle import from_hugging_face

    config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    answer, vocabulary, head = from_hugging_face(tmp_path, precision="float64")
    assert head.shape == (vocabulary, 8) == (40, 8)
    questions = TokenQuestions(vocabulary, 4, 4)
    reading = TokenReading(questions, TokenReveal("top_k", 4), relative=1e-12)
    oracle = LanguageModelOracle(answer, questions, TokenReveal("top_k", 4))
    found = core.run_host(last_layer(reading, 20), oracle, 0).found
    # its states are layer-normalised, with a shift that is zero before training: one dimension less
    assert found.size == 7


@pytest.fixture(scope="module")
def trained():
    """A byte-level transformer of width 64, trained on this repository's own source."""
    from pathlib import Path

    import dfke_jax

    files = sorted(Path(dfke_jax.__file__).parent.rglob("*.py"))
    text = b"".join(file.read_bytes() for file in files)[:300_000]
    return train_language_model(ByteTransformer(256, 64, 2, 4, 32), text, jax.random.key(0), steps=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reveal", "prompts", "bound"),
    [
        (TokenReveal("logits"), 160, 1e-5),
        (TokenReveal("top_k", 5), 160, 1e-5),
        (TokenReveal("top_k", 1), 100, 1e-5),
        (TokenReveal("token"), 100, 1e-2),
        (TokenReveal("logits", decimals=4), 160, 1e-4),
        (TokenReveal("top_k", 5, decimals=4), 160, 1e-4),
        (TokenReveal("logits", decimals=1), 160, 0.1),
        (TokenReveal("top_k", 5, decimals=1), 320, 0.1),
    ],
)
def test_the_width_of_a_trained_model_over_http(trained, reveal, prompts, bound):
    questions = TokenQuestions(256, 8, 6)
    reading = TokenReading(questions, reveal, precision=0.02)
    oracle = LanguageModelOracle(trained.logits, questions, reveal)
    app = create_app(oracle, **oracle.endpoint_settings)
    with background(app) as url, RemoteVictim(url) as remote, Ledger() as ledger:
        solution = core.run_host(last_layer(reading, prompts), Metered(remote, ledger), 0)
        assert ledger.counts()["rows"] == reading.cost(prompts, 255)
    assert solution.found.size == 64
    assert solution.found.aligned(trained.last_layer)[1] < bound
