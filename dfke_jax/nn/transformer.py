"""A causal transformer over bytes, small enough to be trained in a minute."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key, PyTree


class ByteTransformer(nn.Module):
    """Pre-norm decoder blocks with RMS normalisation, and a last layer of its own.

    Attributes:
      vocabulary: V. width: h, of the states that the last layer reads.
      layers, heads: of the blocks. context: most tokens.
      activation_bits: to which the input of every matrix is rounded, one scale a call, but of
        attention's output projection; None for none.

    A last layer W (V, h) without bias on RMS-normalised states: logits have rank h.
    """

    vocabulary: int = 256
    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 32
    activation_bits: int | None = None

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Tokens (B, L) -> logits (B, L, V) of each next one."""
        length = tokens.shape[1]
        x = nn.Embed(self.vocabulary, self.width, name="tokens")(tokens)
        x = (
            x
            + self.param("positions", nn.initializers.normal(0.02), (self.context, self.width))[
                None, :length
            ]
        )
        mask = nn.make_causal_mask(tokens)
        for i in range(self.layers):
            y = self._held(nn.RMSNorm(name=f"norm{i}a")(x))
            x = x + nn.MultiHeadDotProductAttention(
                self.heads, use_bias=False, name=f"attention{i}"
            )(y, mask=mask)
            y = self._held(nn.RMSNorm(name=f"norm{i}b")(x))
            y = nn.Dense(4 * self.width, use_bias=False, name=f"up{i}")(y)
            x = x + nn.Dense(self.width, use_bias=False, name=f"down{i}")(self._held(nn.gelu(y)))
        states = self._held(nn.RMSNorm(name="norm")(x))
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(states)

    def _held(self, x: Array) -> Array:
        """What arithmetic of so many bits holds of activations."""
        return x if self.activation_bits is None else _rounded(x, self.activation_bits)


def _rounded(x: Array, bits: int) -> Array:
    """x in 2^bits − 1 levels between −max|x| and max|x|."""
    scale = jnp.maximum(jnp.abs(x).max(), 1e-30) / (2 ** (bits - 1) - 1)
    return jnp.round(x / scale) * scale


class LanguageModel(NamedTuple):
    """A transformer with its parameters.

    Attributes:
      module: the network. parameters: its own.
    """

    module: ByteTransformer
    parameters: PyTree

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (B, L) -> logits (B, V) of the next one; padded to powers of two rows."""
        size = 1 << (len(tokens) - 1).bit_length()
        padded = np.concatenate([tokens, np.repeat(tokens[-1:], size - len(tokens), 0)])
        return np.asarray(_next(self.module, self.parameters, padded))[: len(tokens)]

    def complete(
        self, tokens: np.ndarray, draws: np.ndarray, length: int, temperature: float = 1.0
    ) -> np.ndarray:
        """Texts (B, length) behind prompts (B, L); the numbers of the draws are their keys."""
        if tokens.shape[1] + length > self.module.context:
            raise InputError(
                f"a prompt of {tokens.shape[1]} tokens and a text of {length} exceed the "
                f"context, {self.module.context}"
            )
        size = 1 << (len(tokens) - 1).bit_length()
        padded = np.concatenate([tokens, np.repeat(tokens[-1:], size - len(tokens), 0)])
        numbers = np.concatenate([draws, np.repeat(draws[-1:], size - len(draws))]).astype(
            np.uint32
        )
        drawn = _complete(
            self.module, length, self.parameters, padded, numbers, jnp.float32(temperature)
        )
        return np.asarray(drawn)[: len(tokens)]

    @property
    def last_layer(self) -> np.ndarray:
        """W (V, h)."""
        return np.asarray(self.parameters["head"]["kernel"], np.float64).T

    def quantised(self, bits: int = 8) -> "LanguageModel":
        """The same in whole numbers of so many bits: matrices and what goes into them, one scale
        each (see `ByteTransformer`).
        """
        rounded = lambda leaf: leaf if leaf.ndim < 2 else _rounded(leaf, bits)
        module = self.module.clone(activation_bits=bits)
        return LanguageModel(module, jax.tree.map(rounded, self.parameters))


@functools.partial(jax.jit, static_argnums=0)
def _next(module: ByteTransformer, parameters: PyTree, tokens: Array) -> Array:
    return module.apply({"params": parameters}, tokens)[:, -1]  # type: ignore[index]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _complete(
    module: ByteTransformer,
    length: int,
    parameters: PyTree,
    prompts: Array,
    draws: Array,
    temperature: Array,
) -> Array:
    begin = prompts.shape[1]
    tokens = jnp.concatenate([prompts, jnp.zeros((len(prompts), length), prompts.dtype)], 1)
    keys = jax.vmap(lambda draw: jax.random.fold_in(jax.random.key(0), draw))(draws)

    def step(tokens: Array, i: Array) -> tuple[Array, None]:
        logits = module.apply({"params": parameters}, tokens)
        here = logits[:, begin + i - 1] / temperature  # type: ignore[index]
        one = lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row)
        drawn = jax.vmap(one)(keys, here)
        return jax.lax.dynamic_update_slice(
            tokens, drawn[:, None].astype(tokens.dtype), (0, begin + i)
        ), None

    return jax.lax.scan(step, tokens, jnp.arange(length))[0][:, begin:]


def train_language_model(
    module: ByteTransformer,
    text: bytes,
    key: Key,
    *,
    steps: int = 600,
    batch: int = 32,
    learning_rate: float = 3e-3,
) -> LanguageModel:
    """Trains on a text by Adam: next bytes of random pieces; the rate falls along a cosine.

    Args:
      module: the network; its vocabulary holds the bytes of the text.
      text: at least twice as long as the context.
      key: of everything drawn.
      steps, batch, learning_rate: of the training.

    Raises:
      InputError: for a text that is too short, or bytes beyond the vocabulary.
    """
    data = np.frombuffer(text, np.uint8).astype(np.int32)
    if len(data) < 2 * module.context + 2 or data.max(initial=0) >= module.vocabulary:
        raise InputError(
            f"a text of at least {2 * module.context + 2} bytes below {module.vocabulary} is "
            f"needed, got {len(data)} up to "
            f"{data.max(initial=0)}"
        )
    first, second = jax.random.split(key)
    parameters = jax.jit(module.init)(first, jnp.zeros((1, module.context), jnp.int32))["params"]
    parameters, _ = _train(
        module, steps, batch, parameters, jnp.asarray(data), second, jnp.float32(learning_rate)
    )
    return LanguageModel(module, parameters)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(
    module: ByteTransformer,
    steps: int,
    batch: int,
    parameters: PyTree,
    data: Array,
    key: Key,
    rate: Array,
) -> tuple[Any, Array]:
    optimizer = optax.scale_by_adam()

    def loss(parameters: PyTree, tokens: Array) -> Array:
        logits = module.apply({"params": parameters}, tokens[:, :-1])
        entropies = optax.softmax_cross_entropy_with_integer_labels
        losses = entropies(logits, tokens[:, 1:])  # type: ignore[arg-type]
        return losses.mean()

    def step(carried: tuple, i: Array) -> tuple[tuple, Array]:
        parameters, state = carried
        starts = jax.random.randint(
            jax.random.fold_in(key, i), (batch,), 0, len(data) - module.context
        )
        tokens = data[starts[:, None] + jnp.arange(module.context + 1)[None]]
        value, gradient = jax.value_and_grad(loss)(parameters, tokens)
        updates, state = optimizer.update(gradient, state)
        now = rate * 0.5 * (1 + jnp.cos(jnp.pi * i / steps))
        parameters = jax.tree.map(lambda p, u: p - now * u, parameters, updates)
        return (parameters, state), value

    (parameters, _), losses = jax.lax.scan(
        step, (parameters, optimizer.init(parameters)), jnp.arange(steps)
    )
    return parameters, losses


__all__ = ["ByteTransformer", "LanguageModel", "train_language_model"]
