"""Knockoff Nets: a public pool, asked at random or by a bandit over its classes."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Attack
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics
from dfke_jax.extraction.pool import (
    Labelled,
    PoolAttackSettings,
    empty_table,
    new_clone,
    train_clone,
)
from dfke_jax.extraction.pool_attack import ChoosingAttack
from dfke_jax.extraction.random_queries import random_attack
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import soft_cross_entropy
from dfke_jax.nn.training import Training
from dfke_jax.oracle.reveal import Reveal

REWARDS = ("certainty", "diversity", "loss")


def knockoff(
    clone: Classifier,
    pool: Array,
    reveal: Reveal,
    settings: PoolAttackSettings | None = None,
    *,
    train_every: int | None = None,
    augment: Augmentation | None = None,
) -> Attack:
    """Knockoff Nets with random sampling: min_S E_{x ∈ pool} H(V(x), S(x)), x drawn without
    replacement.

    The defaults are the published ones: 60,000 rows, SGD with learning rate 0.01 and momentum 0.5,
    ×0.1 after 60 of 100 epochs in batches of 64.

    Args:
      clone: gives the network; fresh parameters are drawn (the paper begins from ImageNet's).
      pool: (N, H, W, C). reveal: what the oracle answers; labels become one-hot targets.
      settings, train_every, augment: as for `random_attack`.

    Returns:
      An `Attack` over `RandomState`.

    Raises:
      InputError: for a pool that does not fit.

    Source: Orekondy, Schiele and Fritz, Knockoff Nets, CVPR 2019, section 4. Deviations: new
    parameters, batches drawn with replacement, and the last iterate is kept (the released code
    reports the best on test data).
    """
    return random_attack(
        clone,
        pool,
        reveal,
        settings or PoolAttackSettings(),
        train_every=train_every,
        augment=augment,
    )


@dataclasses.dataclass(frozen=True)
class BanditSettings(PoolAttackSettings):
    """How the bandit asks.

    Attributes:
      rows_per_step: actions drawn from one policy before it is updated; the paper's is 1. Larger
        ones give the device more to do at once.
      rewards: which of ``certainty``, ``diversity`` and ``loss`` are averaged.
      window: Δ, answers that rewards are rescaled by and compared with (published: 100).
      learner_steps: updates of the clone after every step, so that the loss it is rewarded for is
        that of a learner.

    Raises:
      UnknownNameError: for another reward.
      InputError: for no rewards, or sizes that do not fit.
    """

    rows_per_step: int = 10
    rewards: tuple[str, ...] = REWARDS
    window: int = 100
    learner_steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        for name in self.rewards:
            if name not in REWARDS:
                raise UnknownNameError("reward", name, REWARDS)
        if not self.rewards or len(set(self.rewards)) < len(self.rewards):
            raise InputError(f"rewards must be distinct and at least one, got {self.rewards}")
        if self.window < 1 or self.learner_steps < 0:
            raise InputError(
                f"window must be at least 1 and learner_steps not negative, got {self.window}, "
                f"{self.learner_steps}"
            )


class Bandit(NamedTuple):
    """A gradient bandit over Z groups of the pool.

    Attributes:
      preferences: H, (Z,). counts: (Z,) int32, how often each group was drawn.
      rewards: (Δ, 3) raw rewards of the last Δ actions, in a ring. answers: (Δ, K), likewise.
      seen: () int32, actions so far.
    """

    preferences: Array
    counts: Array
    rewards: Array
    answers: Array
    seen: Array


class AdaptiveState(NamedTuple):
    """State of the adaptive attack.

    Attributes:
      asked: (N,) bool. chosen: (q,) int32, rows of the step in progress. bandit: the policy.
      labelled: what was answered. clone: its training state.
    """

    asked: Array
    chosen: Array
    bandit: Bandit
    labelled: Labelled
    clone: Training


def adaptive_knockoff(
    clone: Classifier,
    pool: Array,
    groups: Array,
    num_groups: int,
    reveal: Reveal,
    settings: BanditSettings | None = None,
    *,
    augment: Augmentation | None = None,
) -> Attack:
    """Knockoff Nets with a policy π = softmax(H) over groups z of the pool, such as the pool's own
    labels.

    After the answer to an image of group z: N(z) += 1 and H += (1/N(z)) · (r − r̄) · (e_z − π),
    where r averages the chosen rewards, each rescaled to [0, 1] over the last Δ:

    - certainty: p₁ − p₂, the two largest probabilities answered;
    - diversity: Σ_k max(0, p_k − p̄_k), p̄ the mean of the last Δ answers;
    - loss: H(p, S(x)) of the clone at the beginning of the step.

    r̄ is the mean over the last Δ, so (r − r̄) is Σ_j (r_j − mean_j)/(max_j − min_j) over the
    number of rewards; a reward that did not vary counts as 0, and so does the first action.

    Args:
      clone, pool, reveal: as for `knockoff`.
      groups: (N,) integers in [0, num_groups), of the pool.
      num_groups: Z.
      settings: see `BanditSettings`.
      augment: of the clone's batches.

    Returns:
      An `Attack` over `AdaptiveState`. Metrics: as `random_attack`, and the policy's ``entropy`` in
        nats. When the
      budget is spent, the clone is trained once more from new parameters on everything.

    Raises:
      InputError: for a pool or groups that do not fit.

    Source: Orekondy, Schiele and Fritz, Knockoff Nets, CVPR 2019, section 4.2 and equations 3 to 8.
    Deviations: groups are flat (the paper's tree of classes has one level); several actions are
    drawn from one policy (the successive draws of a step are without replacement, so a group's
    weight shrinks by 1/n_z with each); exhausted groups leave the policy. No released code has this
    part.
    """
    if (
        groups.shape != pool.shape[:1]
        or not jnp.issubdtype(groups.dtype, jnp.integer)
        or num_groups < 1
    ):
        raise InputError(
            f"groups must be integers ({pool.shape[0]},), one per image, below num_groups >= 1; "
            f"got {groups.dtype} {groups.shape} and {num_groups}"
        )
    return _Adaptive.on(
        clone,
        pool,
        reveal,
        settings or BanditSettings(),
        augment=augment,
        groups=jnp.asarray(groups, jnp.int32),
        num_groups=num_groups,
    )


@record
class _Adaptive(ChoosingAttack[BanditSettings]):
    """Attributes beside those of `ChoosingAttack`: groups (N,) int32, and num_groups."""

    groups: Array
    num_groups: int = static_field()

    def init(self, key: Key) -> AdaptiveState:
        settings, classes = self.settings, self.clone.num_classes
        return AdaptiveState(
            jnp.zeros(self.pool.shape[0], bool),
            jnp.zeros(settings.rows_per_step, jnp.int32),
            new_bandit(self.num_groups, settings.window, classes),
            empty_table(settings, classes),
            new_clone(self.clone, settings.clone, key),
        )

    def policy(self, state: AdaptiveState) -> Array:
        """log π, (Z,)."""
        return policy(state.bandit.preferences, self.groups, state.asked)

    def choose(self, key: Key, state: AdaptiveState) -> Array:
        count = self.settings.rows_per_step
        return draw(jax.random.fold_in(key, 0), self.policy(state), self.groups, state.asked, count)

    def report(self, state: AdaptiveState) -> Metrics:
        log_policy = self.policy(state)
        shares = jnp.exp(log_policy)
        # an exhausted group has a share of 0 and a logarithm of −inf
        return {"entropy": -jnp.sum(jnp.where(shares > 0, shares * log_policy, 0))}

    def label(self, key: Key, state: AdaptiveState, rows: Array, targets: Array) -> AdaptiveState:
        losses = soft_cross_entropy(self.learner(state)(rows), targets)
        shares, groups = jnp.exp(self.policy(state)), self.groups[state.chosen]
        bandit = update_bandit(state.bandit, shares, groups, targets, losses, self.settings.rewards)
        told = super().label(key, state, rows, targets)
        return told._replace(asked=state.asked.at[state.chosen].set(True), bandit=bandit)

    def learn(self, key: Key, before: AdaptiveState, told: AdaptiveState) -> Training:
        learner_key, train_key = jax.random.fold_in(key, 2), jax.random.fold_in(key, 3)
        ends = told.labelled.asked >= self.settings.budget
        start = (
            self.learn_some(learner_key, told, ~ends) if self.settings.learner_steps else told.clone
        )
        return self.learn_all(train_key, told, start, ends)

    def learn_some(self, key: Key, told: AdaptiveState, due: Array) -> Training:
        """A few updates on what was answered so far, so that the loss is that of a learner."""
        settings, learnt = self.settings, told.labelled.learnt
        # as many rows as the learner will use: a gather of the whole table would cost more than the
        # updates
        draws_key, train_key = jax.random.split(key)
        count = settings.learner_steps * settings.clone.batch_size
        places = jax.random.randint(draws_key, (count,), 0, learnt.filled)
        return train_clone(
            train_key,
            self.clone,
            self.pool[learnt.indices[places]],
            learnt.targets[places],
            jnp.full((), count, jnp.int32),
            settings.clone,
            start=told.clone,
            due=due,
            fresh=False,
            steps=settings.learner_steps,
            augment=self.augment,
        )


def new_bandit(num_groups: int, window: int, num_classes: int) -> Bandit:
    """A bandit without preferences."""
    return Bandit(
        jnp.zeros(num_groups),
        jnp.zeros(num_groups, jnp.int32),
        jnp.zeros((window, len(REWARDS))),
        jnp.zeros((window, num_classes)),
        jnp.zeros((), jnp.int32),
    )


def draw(key: Key, log_policy: Array, groups: Array, asked: Array, count: int) -> Array:
    """`count` rows that were not asked: a group from the policy, then an image of it uniformly;
    without replacement.

    Args:
      log_policy: (Z,). groups: (N,). asked: (N,) bool, with at least `count` False.

    Returns:
      (count,) int32, in the order of drawing: the Gumbel-top-k of log π_z − log n_z.
    """
    left = _left(groups, asked, log_policy.shape[0])
    weights = (log_policy - jnp.log(jnp.maximum(left, 1)))[groups]
    scores = jnp.where(asked, -jnp.inf, weights + jax.random.gumbel(key, groups.shape))
    return lax.top_k(scores, count)[1].astype(jnp.int32)


def policy(preferences: Array, groups: Array, asked: Array) -> Array:
    """log π (Z,): the log-softmax of H over the groups that still have images, −inf for the others."""
    left = _left(groups, asked, preferences.shape[0])
    return jax.nn.log_softmax(jnp.where(left > 0, preferences, -jnp.inf))


def _left(groups: Array, asked: Array, num_groups: int) -> Array:
    return jax.ops.segment_sum((~asked).astype(jnp.float32), groups, num_groups)


def update_bandit(
    bandit: Bandit,
    probabilities: Array,
    groups: Array,
    answers: Array,
    losses: Array,
    used: tuple[str, ...] = REWARDS,
) -> Bandit:
    """Takes in the answers to q actions, one after another.

    Args:
      probabilities: π (Z,) that the actions were drawn from.
      groups: (q,) of the actions. answers: (q, K). losses: (q,) of the clone.
      used: names of the rewards to average.
    """
    window = bandit.rewards.shape[0]
    columns = jnp.asarray([REWARDS.index(name) for name in used])

    def one(bandit: Bandit, action: tuple[Array, Array, Array]) -> tuple[Bandit, None]:
        group, answer, loss = action
        filled = jnp.minimum(bandit.seen, window)
        known = jnp.arange(window)[:, None] < filled
        typical = jnp.sum(jnp.where(known, bandit.answers, 0), 0) / jnp.maximum(filled, 1)
        largest = lax.top_k(answer, 2)[0]
        raw = jnp.stack([largest[0] - largest[1], jnp.sum(jnp.maximum(answer - typical, 0)), loss])
        mean = jnp.sum(jnp.where(known, bandit.rewards, 0), 0) / jnp.maximum(filled, 1)
        low = jnp.minimum(raw, jnp.min(jnp.where(known, bandit.rewards, jnp.inf), 0))
        high = jnp.maximum(raw, jnp.max(jnp.where(known, bandit.rewards, -jnp.inf), 0))
        span = high - low
        scaled = jnp.where(span > 1e-12, (raw - mean) / jnp.maximum(span, 1e-12), 0)
        advantage = jnp.where(filled > 0, jnp.mean(scaled[columns]), 0)
        counts = bandit.counts.at[group].add(1)
        change = jax.nn.one_hot(group, probabilities.shape[0]) - probabilities
        place = bandit.seen % window
        return Bandit(
            bandit.preferences + advantage / counts[group] * change,
            counts,
            bandit.rewards.at[place].set(raw),
            bandit.answers.at[place].set(answer),
            bandit.seen + 1,
        ), None

    return lax.scan(one, bandit, (groups, answers, losses))[0]


__all__ = [
    "REWARDS",
    "AdaptiveState",
    "Bandit",
    "BanditSettings",
    "adaptive_knockoff",
    "draw",
    "knockoff",
    "new_bandit",
    "policy",
    "update_bandit",
]
