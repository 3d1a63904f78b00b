"""DFME on one page: all that the attack does, with jax and optax. Networks and digits are the
package's.

    python examples/dfme_in_one_file.py

min_S max_G E_z |V(G(z)) − S(G(z))|: a clone S learns a victim V from the answers to images of a
generator G, and G seeks images on which the two disagree. V's gradient is not to be had, so that of
the disagreement is estimated from how the answers change along one random direction an image.
Truong, Maini, Walls and Papernot, Data-Free Model Extraction, CVPR 2021.

`dfke_jax.extraction.dfme` is the same attack with several directions, central differences, a replay
ring, learning-rate schedules, victims on the host or behind HTTP, a ledger, and batches split over
devices. A test holds one iteration of this page against one of that.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax import data, nn


class Config(NamedTuple):
    """Smaller than published, for grey digits of 8×8; n_S is the published one."""

    queries: int = 100_000
    batch: int = 64  # B
    clone_batches: int = 5  # n_S, steps of the clone for one of the generator
    latent: int = 64
    width: int = 16
    epsilon: float = 1e-2  # length of a step in x̃, as a whole
    clone_rate: float = 0.02
    generator_rate: float = 1e-3

    @property
    def queries_per_iteration(self) -> int:
        """B·(n_S + 2): the clone's batches, and two points an image for a difference."""
        return self.batch * (self.clone_batches + 2)


class State(NamedTuple):
    """Parameters and optimisers' states of clone and generator, and the generator's running
    statistics.
    """

    clone: Any
    clone_opt: Any
    generator: Any
    generator_opt: Any
    statistics: Any


class Drawn(NamedTuple):
    """All that is random in an iteration: latents (n_S, B, Z) and (B, Z), unit directions (B, H, W,
    C).
    """

    clone_z: jax.Array
    generator_z: jax.Array
    directions: jax.Array


def make_attack(config: Config, shape: tuple[int, int, int], network: Any):
    """`init(key)`, `draw(key)` and `iteration(victim, state, drawn)`, with victim: rows ->
    probabilities.
    """
    generator = nn.DFMEGenerator(shape, config.width, config.latent)
    clone_rule = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(config.clone_rate, momentum=0.9)
    )
    generator_rule = optax.adam(config.generator_rate)
    shown = lambda x: (jnp.tanh(x) + 1) / 2

    def init(key):
        clone_key, generator_key = jax.random.split(key)
        clone = network.init(clone_key, jnp.zeros((1, *shape)))["params"]
        made = generator.init(generator_key, jnp.zeros((2, config.latent)))
        player = made["params"]
        return State(
            clone, clone_rule.init(clone), player, generator_rule.init(player), made["batch_stats"]
        )

    def draw(key):
        clone_key, generator_key, direction_key = jax.random.split(key, 3)
        u = jax.random.normal(direction_key, (config.batch, *shape))
        u = u / jnp.sqrt(jnp.sum(u**2, (1, 2, 3), keepdims=True))
        clone_z = jax.random.normal(clone_key, (config.clone_batches, config.batch, config.latent))
        return Drawn(clone_z, jax.random.normal(generator_key, (config.batch, config.latent)), u)

    def generate(params, statistics, z):
        """z -> x̃, the image before the tanh, and the running statistics; normalisation uses the
        batch.
        """
        variables = {"params": params, "batch_stats": statistics}
        return generator.apply(
            variables, z, train=True, mutable=["batch_stats"], method="pre_activation"
        )

    def recovered(probabilities):
        """Logits up to a constant, which their mean is taken off for."""
        logs = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
        return logs - logs.mean(-1, keepdims=True)

    def distance(clone, rows, target):
        """(B,): the mean over classes of |v − s|."""
        return jnp.mean(jnp.abs(network.apply({"params": clone}, rows) - target), -1)

    def iteration(victim, state, drawn):
        # 1. The clone takes n_S steps, each on the victim's answers to a fresh batch of the
        # generator.
        def clone_step(carry, z):
            clone, opt = carry
            rows = shown(generate(state.generator, state.statistics, z)[0])
            target = recovered(victim(rows))
            loss, gradient = jax.value_and_grad(lambda clone: distance(clone, rows, target).mean())(
                clone
            )
            updates, opt = clone_rule.update(gradient, opt, clone)
            return (optax.apply_updates(clone, updates), opt), loss

        (clone, clone_opt), losses = jax.lax.scan(
            clone_step, (state.clone, state.clone_opt), drawn.clone_z
        )

        # 2. The generator takes one step up the disagreement with the clone as it is by now.
        forward = lambda params: generate(params, state.statistics, drawn.generator_z)
        x, back, changed = jax.vjp(forward, state.generator, has_aux=True)
        rows = shown(jnp.concatenate([x, x + config.epsilon * drawn.directions]))
        here, there = jnp.split(distance(clone, rows, recovered(victim(rows))), 2)
        slope = (there - here) / config.epsilon  # along u; its mean over all u is ∇·u/D
        gradient = x[0].size * slope[:, None, None, None] * drawn.directions
        (descent,) = back(
            -gradient / config.batch
        )  # from x̃ on the generator's own gradient is exact
        updates, generator_opt = generator_rule.update(
            descent, state.generator_opt, state.generator
        )
        player = optax.apply_updates(state.generator, updates)
        state = State(clone, clone_opt, player, generator_opt, changed["batch_stats"])
        return state, {"loss": losses.mean(), "disagreement": here.mean()}

    return init, draw, iteration


def train_victim(network, images, labels, steps):
    """Any classifier will do; this one learns the digits."""
    params = network.init(jax.random.key(0), images[:1])["params"]
    rule = optax.adam(2e-3)

    def step(carry, key):
        params, opt = carry
        batch = jax.random.randint(key, (128,), 0, len(images))

        def loss(params):
            logits = network.apply({"params": params}, images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        updates, opt = rule.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    return jax.lax.scan(
        step, (params, rule.init(params)), jax.random.split(jax.random.key(1), steps)
    )[0][0]


def main(config: Config | None = None, victim_steps: int = 500) -> dict[str, float]:
    """Trains a victim, steals it, and says how well both know the digits."""
    config = config or Config()
    digits, network = data.load("digits"), nn.build("mlp_small")
    images, labels = (jnp.asarray(part) for part in (digits.train.images, digits.train.labels))
    weights = jax.jit(functools.partial(train_victim, network, steps=victim_steps))(images, labels)
    victim = lambda rows: jax.nn.softmax(network.apply({"params": weights}, rows))
    init, draw, iteration = make_attack(config, digits.shape, network)

    @jax.jit
    def run(key):
        start, keys = jax.random.split(key)
        keys = jax.random.split(keys, config.queries // config.queries_per_iteration)
        return jax.lax.scan(
            lambda state, key: iteration(victim, state, draw(key)), init(start), keys
        )

    state, metrics = run(jax.random.key(2))
    test, truth = jnp.asarray(digits.test.images), jnp.asarray(digits.test.labels)
    accuracy = lambda params: (
        100 * float((network.apply({"params": params}, test).argmax(-1) == truth).mean())
    )
    found = {
        "victim": accuracy(weights),
        "clone": accuracy(state.clone),
        "loss": float(metrics["loss"][-1]),
    }
    asked = len(metrics["loss"]) * config.queries_per_iteration
    print(f"victim {found['victim']:.1f} %, clone {found['clone']:.1f} % after {asked:,} queries")
    return found


if __name__ == "__main__":
    main()
