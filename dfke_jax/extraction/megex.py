"""MEGEX: extraction from an endpoint that explains its answers by gradients."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Attack, as_attack
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.extraction.common import SMALL, GenerativeSettings, batches
from dfke_jax.extraction.dfme import DFMEState, GeneratorAndClone
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import updated_by
from dfke_jax.oracle.explanations import (
    Explained,
    Explanation,
    class_gradients,
    explained_gradients,
)
from dfke_jax.oracle.reveal import Reveal

SATURATED = 1e-6
"""p(1 − p) of a top class below which its gradient is what float32 rounding left of it."""

_TINY = float(jnp.finfo(jnp.float32).tiny)
OBJECTIVES = ("logits", "probabilities")


@dataclasses.dataclass(frozen=True)
class MEGEXSettings(GenerativeSettings):
    """How MEGEX runs: DFME's values, without differences.

    `rows_per_step` is B·(n_S + 1). The endpoint explains them all, although the attack uses the
    explanations of the last B alone.

    Attributes:
      floor: the smallest probability that an explanation which is no exact gradient is divided by,
        so that classes which the victim rules out do not outweigh the others.
      objective: L, which the generator climbs: ``logits``, DFME's (1/K) Σ_k |v_k − s_k|; or
        ``probabilities``, (1/K) Σ_k |p_k − q_k| with q = softmax s, which is bounded. The latter is
        not published.
      diversity: λ of −λ Σ_k ᾱ_k log ᾱ_k, which the generator climbs as well, with ᾱ the victim's
        mean answer to its batch: DisGUIDE's balance of classes, read off the victim instead of the
        clones. Not published; 0 is MEGEX.
    """

    floor: float = 1e-3
    objective: Literal["logits", "probabilities"] = "logits"
    diversity: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.floor < 1:
            raise InputError(f"floor must lie in (0, 1), got {self.floor}")
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        if self.diversity < 0:
            raise InputError(f"diversity must not be negative, got {self.diversity}")

    @property
    def rows_per_step(self) -> int:
        """B·(n_S + 1)."""
        return self.batch_size * (self.clone_batches + 1)


SMALL_MEGEX = MEGEXSettings(**SMALL)
"""For LeNets on grey images; see `dfke_jax.extraction.common.SMALL`. What the generator climbs is
the published distance of logits: neither the distance of probabilities nor a balance of classes
gained anything on held-back images (docs/extraction.md)."""


def megex(
    clone: Classifier,
    settings: MEGEXSettings | None = None,
    num_classes: int | None = None,
    explanation: Explanation | None = None,
) -> Attack:
    """Data-free model extraction with gradients from explanations.

    With E_k = ∂p_k/∂x, ∂log p_k = E_k/p_k and v_k = log p_k − mean_j log p_j, the generator climbs
    ∂L/∂x = (1/K) Σ_k sign(v_k − s_k)·(∂v_k − ∂s_k); the clone's part is differentiated through the
    clone, always exactly. What it climbs instead or besides (`MEGEXSettings.objective`,
    `diversity`) is a function of p and s too, whose slope by log p takes the place of the signs.
    What the victim's part is made of depends on what is explained:

    | kind | E_k | all classes | top class t alone |
    |---|---|---|---|
    | ``gradient`` | as it is | exact | exact for K = 2 |
    | ``gradient_times_input`` | divided by x | exact but where x is 0 | exact for K = 2, but there |
    | ``smooth_grad`` | as it is: a gradient's mean around x | approximate | approximate |
    | ``integrated_gradients`` | divided by x − x₀: a mean along the way | approximate | approximate |
    | ``sign`` | its sign times the mean size of the clone's | approximate | approximate |
    | ``abs`` | – | refused | refused |

    Of the top class alone v needs the other p_j as well. Their logits are taken to move together;
    then everything follows from ∂ log(p_t/(1 − p_t)) = E_t/(p_t (1 − p_t)). Rounded maps are
    approximate whatever their kind. Approximate ones are divided by no probability below
    `MEGEXSettings.floor`. At x = 0 of the box (0, 1) the generator's tanh is saturated and asks for
    no gradient.

    Rows: n_S·B for the clone, then B for the generator. Order of the players as in
    `dfke_jax.extraction.dfme.dfme`.

    Args:
      clone, settings, num_classes: see `dfke_jax.extraction.dfme.dfme`.
      explanation: what the endpoint explains; input gradients of all classes by default.

    Returns:
      An `Attack` over `DFMEState` whose `tell` takes like `dfke_jax.oracle.Explained`; metrics
      ``loss``, ``disagreement``.

    Raises:
      InputError: for a loss other than l1, for ``abs``, whose signs are lost, and as
        `GenerativeAttack.between`; in `tell`, for explanations of another shape.

    Source: Miura, Hasegawa and Shibahara, MEGEX: Data-Free Model Extraction Attack against
      Gradient-Based Explainable AI, 2021 (the formula is ours: the abstract states the setting and
      no code is public; so is what is done with anything but input gradients of all classes).
    """
    settings = settings or MEGEXSettings()
    setting = explanation or Explanation()
    if settings.loss not in ("auto", "l1"):
        raise InputError(f"MEGEX is written for the l1 loss on logits, not {settings.loss!r}")
    if setting.kind == "abs":
        raise InputError(
            "MEGEX needs the direction of a gradient and 'abs' explanations have lost it; use dfme"
        )
    return as_attack(_MEGEX.between(clone, settings, Reveal(), num_classes, explanation=setting))


def explained_gradient(
    probabilities: Array,
    explanation: Array,
    clone: Classifier,
    images: Array,
    setting: Explanation | None = None,
    settings: MEGEXSettings | None = None,
) -> tuple[Array, Array]:
    """B times the gradient of what the generator climbs, (1/B) Σ_b L_b − λ Σ_k ᾱ_k log ᾱ_k, at
    every sample; and L.

    Args:
      probabilities: p, (B, K). explanation: (B, K, H, W, C), or (B, H, W, C) of the top class.
      clone: S, in evaluation mode.
      images: x, (B, H, W, C).
      setting: what the explanation is; input gradients of all classes by default.
      settings: `objective`, `diversity` and `floor`; the defaults by default.

    Returns:
      (B, H, W, C), exact or approximate as `megex` says, and (B,). Classes whose probability is
      zero in float32 contribute no ∂log p.

    Raises:
      InputError: for shapes that do not fit, and for ``abs``.
    """
    settings = settings or MEGEXSettings()
    logits, back = jax.vjp(clone, images)
    weights, own, gain = _slopes(probabilities, logits, settings)
    victim = victim_gradient(
        weights, probabilities, explanation, clone, images, setting, settings.floor
    )
    return victim - back(own)[0], gain


def _slopes(p: Array, logits: Array, settings: MEGEXSettings) -> tuple[Array, Array, Array]:
    """What is climbed, by log p (the sum over classes is 0) and, negative, by the clone's logits:
    (B, K) each; and L.
    """
    if settings.objective == "logits":
        logs = jnp.log(jnp.maximum(p, _TINY))
        gap = logs - logs.mean(-1, keepdims=True) - logits
        own = jnp.sign(gap) / p.shape[-1]
        # ∂v_k = ∂log p_k − mean_j ∂log p_j, collected by ∂log p_k
        weights = own - own.mean(-1, keepdims=True)
    else:
        q = jax.nn.softmax(logits)
        gap = p - q
        signs = jnp.sign(gap) / p.shape[-1]
        weights, own = _through_softmax(p, signs), _through_softmax(q, signs)
    if settings.diversity:
        log_mean = jnp.log(jnp.maximum(p.mean(0, keepdims=True), _TINY))
        weights = weights - settings.diversity * _through_softmax(
            p, jnp.broadcast_to(log_mean, p.shape)
        )
    return weights, own, jnp.mean(jnp.abs(gap), -1)


def _through_softmax(p: Array, slopes: Array) -> Array:
    """∂/∂z of a function of p = softmax z, from its ∂/∂p."""
    return p * (slopes - jnp.sum(p * slopes, -1, keepdims=True))


def victim_gradient(
    weights: Array,
    probabilities: Array,
    explanation: Array,
    clone: Classifier,
    images: Array,
    setting: Explanation | None = None,
    floor: float = 1e-3,
) -> Array:
    """Σ_k w_k ∂log p_k from an explanation, (B, H, W, C), for weights (B, K) whose sum over k is 0.

    Args: see `explained_gradient` and `MEGEXSettings`.

    Raises:
      InputError: for shapes that do not fit, and for ``abs``.
    """
    setting = setting or Explanation()
    batch, classes = probabilities.shape
    every = setting.classes == "all"
    wanted = (batch, classes, *images.shape[1:]) if every else images.shape
    if explanation.shape != wanted:
        what = "(B, K, H, W, C)" if every else "(B, H, W, C)"
        whose = "one map for every class" if every else "one map of the top class"
        raise InputError(
            f"explanations must be {what} = {wanted}, {whose}, got shape {explanation.shape}"
        )
    if setting.kind != "sign":
        explanation = explained_gradients(Explained(probabilities, explanation), images, setting)
    exact = setting.kind in ("gradient", "gradient_times_input") and setting.decimals is None
    least = _TINY if exact else floor
    if every:
        if setting.kind == "sign":
            scales = _sizes(class_gradients(Partial(_log_probabilities, clone), images))
        else:
            scales = jnp.where(probabilities > _TINY, 1 / jnp.maximum(probabilities, least), 0)
        return jnp.einsum("bk,bkhwc->bhwc", weights * scales, explanation, precision="highest")
    top = jax.nn.one_hot(jnp.argmax(probabilities, -1), classes)
    if setting.kind == "sign":
        scale = _sizes(jax.grad(lambda x: jnp.sum(_log_odds(clone(x), top)))(images))
    else:
        rest = jnp.sum(probabilities * (1 - top), -1)  # not 1 − p_t, which loses what is small
        both = jnp.max(probabilities, -1) * rest
        scale = 1 / jnp.maximum(both, max(least, SATURATED))
    return (jnp.sum(weights * top, -1) * scale).reshape(-1, 1, 1, 1) * explanation


def _log_probabilities(clone: Classifier, images: Array) -> Array:
    return jax.nn.log_softmax(clone(images))


def _log_odds(logits: Array, top: Array) -> Array:
    """log(p_t/(1 − p_t)), (B,), with `top` (B, K) one-hot of t."""
    return jnp.sum(logits * top, -1) - jax.nn.logsumexp(jnp.where(top > 0, -jnp.inf, logits), -1)


def _sizes(gradients: Array) -> Array:
    """Mean of the absolute value over H, W and C."""
    return jnp.mean(jnp.abs(gradients), (-3, -2, -1))


@record
class _MEGEX(GeneratorAndClone[MEGEXSettings]):
    explanation: Explanation = static_field()

    def ask(self, key: Key, state: DFMEState) -> tuple[DFMEState, Array]:
        drawn = self.draws(key)
        z = jnp.concatenate([drawn.clone_z, drawn.generator_z[None]])
        return state, self.maker.batches(state.generator.variables, z).reshape(
            -1, *self.input_shape
        )

    def tell(
        self, key: Key, state: DFMEState, rows: Array, answers: Explained
    ) -> tuple[DFMEState, Metrics]:
        settings, drawn = self.settings, self.draws(key)
        size, fresh = settings.batch_size, settings.clone_batches
        targets = self.targets(answers.probabilities)
        learn_key, replay_key = jax.random.split(drawn.updates)
        clone, loss = self.learn(learn_key, state.clone, *batches((rows, targets), fresh, size))
        clone, replay, metrics = self.replay_steps(replay_key, clone, state.replay, rows, targets)

        def image(params: PyTree) -> tuple[Array, PyTree]:
            variables = {**state.generator.variables, "params": params}
            return self.maker.images(variables, drawn.generator_z)

        images, back, statistics = jax.vjp(image, state.generator.variables["params"], has_aux=True)
        asked = slice(fresh * size, None)
        gradient, disagreement = explained_gradient(
            answers.probabilities[asked],
            answers.explanation[asked],
            self.clone(clone.variables),
            images,
            self.explanation,
            settings,
        )
        (descent,) = back(-gradient / size)
        generator = updated_by(self.maker.optimizer, state.generator, descent, statistics)
        metrics |= {"loss": loss, "disagreement": jnp.mean(disagreement)}
        return DFMEState(clone, generator, replay), metrics


__all__ = ["SMALL_MEGEX", "MEGEXSettings", "explained_gradient", "megex", "victim_gradient"]
