"""MEGEX: extraction from an endpoint that explains its answers by gradients."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, Static
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.extraction.common import Game, GenerativeSettings, batches, updated_by
from dfke_jax.extraction.dfme import DFMEState, begin, draws
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.oracle.explanations import Explained
from dfke_jax.oracle.reveal import Reveal


@dataclasses.dataclass(frozen=True)
class MEGEXSettings(GenerativeSettings):
    """How MEGEX runs: DFME's values, without differences.

    `rows_per_step` is B·(n_S + 1). The endpoint explains them all, although the attack uses the explanations of the
    last B alone.
    """

    @property
    def rows_per_step(self) -> int:
        """B·(n_S + 1)."""
        return self.batch_size * (self.clone_batches + 1)


def megex(clone: Classifier, settings: MEGEXSettings | None = None, num_classes: int | None = None) -> Attack:
    """Data-free model extraction with exact gradients from explanations.

    With E_k = ∂p_k/∂x, ∂log p_k = E_k/p_k and v_k = log p_k − mean_j log p_j, the generator climbs
    ∂L/∂x = (1/K) Σ_k sign(v_k − s_k)·(∂v_k − ∂s_k) exactly; the clone's part is differentiated through the clone.

    The endpoint must explain every class: v_k takes all log p_j. One that explains its top class alone gives one of the
    K terms, and an endpoint that gives signs or absolute values none; they defeat this attack and call for others.

    Rows: n_S·B for the clone, then B for the generator. Order of the players as in `dfke_jax.extraction.dfme.dfme`.

    Args:
      clone, settings, num_classes: see `dfke_jax.extraction.dfme.dfme`.

    Returns:
      An `Attack` over `DFMEState` whose `tell` takes like `dfke_jax.oracle.Explained`, of all classes; metrics ``loss``, ``disagreement``.

    Raises:
      InputError: for a loss other than l1, and as `Game.between`; in `tell`, for explanations of another shape.

    Source: Miura, Hasegawa and Shibahara, MEGEX: Data-Free Model Extraction Attack against Gradient-Based Explainable
      AI, 2021 (the formula is ours: the abstract states the setting and no code is public).
    """
    settings = settings or MEGEXSettings()
    reveal = Reveal()
    if settings.loss not in ("auto", "l1"):
        raise InputError(f"MEGEX is written for the l1 loss on logits, not {settings.loss!r}")
    generator = DFMEGenerator(clone.input_shape, settings.width, settings.latent)
    game = Static(Game.between(clone, generator, settings, reveal, num_classes))
    return Attack(Partial(begin, game), Partial(_ask, game), Partial(_tell, game))


def explained_gradient(
    probabilities: Array, explanation: Array, clone: Classifier, images: Array
) -> tuple[Array, Array]:
    """∂L/∂x of L = (1/K) Σ_k |v_k − s_k| per sample, and L.

    Args:
      probabilities: (B, K). explanation: (B, K, H, W, C) of ∂p_k/∂x. clone: S, in evaluation mode.
      images: x, (B, H, W, C).

    Returns:
      (B, H, W, C) and (B,). Classes whose probability is zero in float32 contribute no ∂log p.

    Raises:
      InputError: for shapes that do not fit.
    """
    batch, classes = probabilities.shape
    if explanation.shape != (batch, classes, *images.shape[1:]):
        raise InputError(
            f"explanations must be (B, K, H, W, C) = {(batch, classes, *images.shape[1:])}, one map for every class, "
            f"got shape {explanation.shape}"
        )
    tiny = jnp.finfo(jnp.float32).tiny
    logs = jnp.log(jnp.maximum(probabilities, tiny))
    recovered = logs - logs.mean(-1, keepdims=True)
    logits, back = jax.vjp(clone, images)
    signs = jnp.sign(recovered - logits) / classes
    weights = signs - signs.mean(-1, keepdims=True)  # ∂v_k = ∂log p_k − mean_j ∂log p_j, collected by ∂log p_k
    weights = jnp.where(probabilities > tiny, weights / jnp.maximum(probabilities, tiny), 0)
    victim = jnp.einsum("bk,bkhwc->bhwc", weights, explanation, precision="highest")
    (own,) = back(signs)
    return victim - own, jnp.mean(jnp.abs(recovered - logits), -1)


def _ask(game: Static, key: Key, state: DFMEState) -> tuple[DFMEState, Array]:
    fixed: Game = game.value
    drawn = draws(fixed, key)
    z = jnp.concatenate([drawn.clone_z, drawn.generator_z[None]])
    return state, fixed.fresh_rows(state.generator.variables, z).reshape(-1, *fixed.input_shape)


def _tell(game: Static, key: Key, state: DFMEState, rows: Array, answers: Explained) -> tuple[DFMEState, Metrics]:
    fixed: Game = game.value
    settings: MEGEXSettings = fixed.settings
    drawn = draws(fixed, key)
    size, fresh = settings.batch_size, settings.clone_batches
    targets = fixed.targets(answers.probabilities)
    learn_key, replay_key = jax.random.split(drawn.updates)
    clone, loss = fixed.clone_steps(learn_key, state.clone, *batches((rows, targets), fresh, size))
    clone, replay, metrics = fixed.replay_steps(replay_key, clone, state.replay, rows, targets)

    def image(params: PyTree) -> tuple[Array, PyTree]:
        variables = {**state.generator.variables, "params": params}
        x, statistics = fixed.pre_activations(variables, drawn.generator_z)
        return fixed.rows(x), statistics

    images, back, statistics = jax.vjp(image, state.generator.variables["params"], has_aux=True)
    asked = slice(fresh * size, None)
    gradient, disagreement = explained_gradient(
        answers.probabilities[asked], answers.explanation[asked], fixed.clone(clone.variables), images
    )
    (descent,) = back(-gradient / size)
    generator = updated_by(fixed.generator_optimizer, state.generator, descent, statistics)
    metrics |= {"loss": loss, "disagreement": jnp.mean(disagreement)}
    return DFMEState(clone, generator, replay), metrics


__all__ = ["MEGEXSettings", "explained_gradient", "megex"]
