"""A language model's last layer, from everything that an endpoint may reveal of it."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import dfke_jax
from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.extraction import LastLayer, TokenReading, complete_outputs, last_layer
from dfke_jax.nn.precision import Precision
from dfke_jax.nn.transformer import ByteTransformer, LanguageModel, train_language_model
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

_BYTES = 256
_PROMPT = 8


@dataclasses.dataclass(frozen=True)
class LastLayerSettings:
    """Settings of last-layer. The victim learns the package's own source text."""

    stand_in: ClassVar[str] = "digits"
    source: ClassVar[str] = "the package's own source text"

    dataset: str = "source_text"
    """A name: the text is always that of this package."""
    seeds: int = 3
    """How many seeds; each has its own victim."""
    seed: int = 0
    """The first seed."""
    precision: Precision = "float32"
    """What networks compute in."""
    width: int = 64
    """Of the states that the last layer reads, which is what is to be found."""
    layers: int = 2
    """Blocks of the victim."""
    text_bytes: int = 300_000
    """Bytes of text that it is trained on."""
    training_steps: int = 400
    """Steps of that."""
    prompts: int = 160
    """Prompts of an extraction; twice as many where answers have one decimal, 0.6 times as many where every
    token is asked by itself."""
    biased: int = 6
    """Tokens that may have a bias in a question."""
    unseen: int = 64
    """Further prompts, whose full outputs are asked once the layer is known."""

    def __post_init__(self):
        sizes = (self.seeds, self.width, self.layers, self.training_steps, self.prompts, self.unseen)
        if min(sizes) < 1 or self.biased < 2 or self.text_bytes < 1000:
            raise InputError("sizes must be positive, two tokens biased, and the text 1,000 bytes")


REVEALS: dict[str, tuple[str, TokenReveal]] = {
    "full": ("All logits", TokenReveal("logits")),
    "top_5": ("5 log-probabilities", TokenReveal("top_k", 5)),
    "top_1": ("1 log-probability", TokenReveal("top_k", 1)),
    "token": ("The token alone", TokenReveal("token")),
    "full_4": ("All logits, 4 decimals", TokenReveal("logits", decimals=4)),
    "top_5_4": ("5 log-probabilities, 4 decimals", TokenReveal("top_k", 5, decimals=4)),
    "full_1": ("All logits, 1 decimal", TokenReveal("logits", decimals=1)),
    "top_5_1": ("5 log-probabilities, 1 decimal", TokenReveal("top_k", 5, decimals=1)),
}
_CONTROL = "other_layer_control"


def arms(config: LastLayerSettings) -> list[Arm]:
    """The victim, another one, and a layer from every kind of answer."""
    return [
        Arm("teacher", f"Victim (width {config.width})", "teacher"),
        Arm("independent", "Another model, trained like it", "anchor"),
        *(Arm(name, label, "method", control=_CONTROL) for name, (label, _) in REVEALS.items()),
        Arm(_CONTROL, "Outputs in the image of the other model", "control"),
    ]


def measure(run: Run[LastLayerSettings]) -> None:
    """One seed: trains two models, and asks the first."""
    config = run.config
    text = _text(config.text_bytes + 4096)
    module = ByteTransformer(_BYTES, config.width, config.layers, _heads(config.width), 32)
    victim, other = (_model(run, name, module, text[: config.text_bytes]) for name in ("victim", "other"))
    prompts, following = _held_back(text[config.text_bytes :], config.unseen)
    truth, budget = victim.logits(prompts).astype(np.float64), {"training_steps": config.training_steps}
    _enter(run, "teacher", truth, None, following, {}, budget)
    _enter(run, "independent", other.logits(prompts), truth, following, {}, budget)
    for name, (_, reveal) in REVEALS.items():
        count = _prompts(config, reveal)
        make = lambda reveal=reveal, count=count: _asked(run, victim, reveal, count, prompts)
        made = run.once(name, make)
        figures, outputs = made["figures"], made["outputs"]
        _enter(run, name, np.asarray(outputs), truth, following, figures, {"prompts": count})
    # the same questions read by the other model's image: h tokens say nothing of the rest
    reading = _reading(config, REVEALS["full"][1])
    own = LanguageModelOracle(other.logits, reading.questions, reading.reveal)
    layer = run_host(last_layer(reading, config.prompts), own, run.seed).found
    if layer.size is None:
        outputs = np.zeros_like(truth)
    else:
        asked = LanguageModelOracle(victim.logits, reading.questions, reading.reveal)
        outputs = run_host(complete_outputs(reading, layer, prompts), asked, run.seed).found
    _enter(run, _CONTROL, outputs, truth, following, {}, {"prompts": config.prompts})


def _prompts(config: LastLayerSettings, reveal: TokenReveal) -> int:
    """More where rounding hides, fewer where a token costs a question of its own."""
    if reveal.decimals == 1:
        return 2 * config.prompts
    dear = reveal.kind == "token" or reveal.k == 1
    return max(config.prompts * 6 // 10, config.width + 8) if dear else config.prompts


def _heads(width: int) -> int:
    return next(heads for heads in (4, 2, 1) if width % heads == 0)


def _text(size: int) -> bytes:
    """The beginning of the package's source text."""
    files = sorted(Path(dfke_jax.__file__).parent.rglob("*.py"))
    text = b"".join(file.read_bytes() for file in files)
    return (text * (1 + size // len(text)))[:size]


def _model(run: Run[LastLayerSettings], name: str, module: ByteTransformer, text: bytes) -> LanguageModel:
    with run.clock("anchors"):
        return train_language_model(module, text, run.key(name), steps=run.config.training_steps)


def _held_back(text: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompts (count, L), the byte that follows each) at even distances."""
    data = np.frombuffer(text, np.uint8).astype(np.int64)
    starts = np.linspace(0, len(data) - _PROMPT - 1, count).astype(int)
    pieces = data[starts[:, None] + np.arange(_PROMPT + 1)]
    return pieces[:, :-1], pieces[:, -1]


def _reading(config: LastLayerSettings, reveal: TokenReveal) -> TokenReading:
    return TokenReading(TokenQuestions(_BYTES, _PROMPT, config.biased), reveal, precision=0.02)


def _asked(
    run: Run[LastLayerSettings],
    victim: LanguageModel,
    reveal: TokenReveal,
    count: int,
    prompts: np.ndarray,
) -> dict[str, Any]:
    """Size, layer and further outputs, over HTTP and through a ledger."""
    reading = _reading(run.config, reveal)
    oracle = LanguageModelOracle(victim.logits, reading.questions, reveal)
    with contextlib.ExitStack() as stack, run.clock("extraction"):
        url = stack.enter_context(background(create_app(oracle, **oracle.endpoint_settings)))
        remote = stack.enter_context(RemoteVictim(url, concurrency=1))
        ledger = stack.enter_context(Ledger())
        metered = Metered(remote, ledger)
        solution = run_host(last_layer(reading, count), metered, run.seed)
        found: LastLayer = solution.found
        spent = ledger.counts()["rows"] or 0
        outputs = np.zeros((len(prompts), _BYTES))
        if found.size is not None:
            spare = found.size if reveal.decimals is not None else 0
            attack = complete_outputs(reading, found, prompts, spare=min(spare, _BYTES - 1 - found.size))
            outputs = run_host(attack, metered, run.seed).found
        further = (ledger.counts()["rows"] or 0) - spent
    rms = found.aligned(victim.last_layer)[1] if found.size else 1.0
    figures = {
        "size": float(found.size or 0),
        "gap": round(found.gap, 2),
        "rows": float(spent),
        "rows_above_formula": float(spent - reading.cost(count, _BYTES - 1)),
        "log10_rms": round(float(np.log10(rms)), 2),
        "rows_an_output": further / len(prompts),
    }
    return {"figures": figures, "outputs": outputs}


def _enter(
    run: Run[LastLayerSettings],
    arm: str,
    outputs: np.ndarray,
    truth: np.ndarray | None,
    following: np.ndarray,
    figures: dict[str, float],
    budget: dict[str, int],
) -> None:
    share: Callable[[Any], float] = lambda same: round(100 * float(np.mean(same)), 4)
    labels = outputs.argmax(1)
    alike = None if truth is None else share(labels == truth.argmax(1))
    run.enter(arm, figures, accuracy=share(labels == following), agreement=alike, budget=budget)


RECIPE = register(
    Recipe(
        name="last-layer",
        title="A language model's last layer through its endpoint",
        summary="The width and the last layer of a small byte-level transformer from all its logits, from five "
        "or one log-probability, and from tokens alone with biases, over HTTP; then full outputs of "
        "further prompts from as many tokens as the width. The control reads the same questions by the "
        "last layer of another model.",
        paper="Carlini et al., Stealing Part of a Production Language Model, ICML 2024",
        config=LastLayerSettings,
        arms=arms,
        measure=measure,
        time="2 min, 2 CPU cores",
        datasets=("source_text",),
        presets={"source_text": {}},
    )
)
