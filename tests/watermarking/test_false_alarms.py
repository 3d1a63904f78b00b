"""How often every verdict accuses innocent networks: simulated, on digits, and held against the page that reports it.

140 networks of one task stand for everybody who has trained one. A secret (key, trigger set, direction) is drawn, some of
the networks are its null models and others its suspects. Suspects of one secret are accused together, so that a secret is
one observation: the rate is the mean over secrets, its interval that of a mean of so many (Student's t, 95 %).
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dfke_jax import data
from dfke_jax.nn import Classifier, build
from dfke_jax.oracle import Reveal
from dfke_jax.watermarking import (
    DawnOracle,
    TriggerSet,
    abstract_images,
    aligned_rows,
    binomial_evidence,
    binomial_p_value,
    content_triggers,
    empirical_p_value,
    frontier_keys,
    keygen,
    leaning,
    make_keys,
    margin_mark,
    measured_rate,
    noise_triggers,
    null_population,
    ownership_test,
    radioactive_mark,
    random_label_evidence,
    ranked_evidence,
    stacked_answers,
    uchida_mark,
    verify,
    verify_dawn,
    verify_frontier,
    verify_margin,
    verify_triggers,
    verify_uchida,
    wrong_labels,
)

pytestmark = pytest.mark.slow
LEVELS, NULLS, SUSPECTS, SECRETS, TRIGGERS = (0.05, 0.01), 99, 40, 400, 50
DIGITS = data.load("digits")
IMAGES, LABELS = DIGITS.train.on_device()
HELD, TRUTH = np.asarray(DIGITS.test.images, np.float32), np.asarray(DIGITS.test.labels)
PAGE = Path(__file__).parents[2] / "docs" / "watermarking.md"


@pytest.fixture(scope="module")
def networks():
    network = Classifier.create(build("mlp_small"), jax.random.key(0), DIGITS.shape)
    stack = null_population(network, IMAGES, LABELS, jax.random.key(1), models=NULLS + SUSPECTS + 1, steps=200)
    accuracy = (np.asarray(stacked_answers(stack, HELD)) == TRUTH[None]).mean(1)
    assert accuracy.min() > 0.9
    return stack


def one(stack, place):
    return jax.tree.map(lambda leaf: leaf[place], stack)


def answers(stack, images):
    """(M, N) labels."""
    return np.asarray(stacked_answers(stack, jnp.asarray(images, jnp.float32)))


def split(rng, count=NULLS + SUSPECTS + 1):
    """Places of null models and of suspects."""
    order = rng.permutation(count)
    return order[:NULLS], order[NULLS : NULLS + SUSPECTS]


def rates(p_values):
    """{level: (rate, lower, upper)} of p-values (secrets, suspects)."""
    p_values, found = np.asarray(p_values), {}
    for level in LEVELS:
        accused = (p_values <= level * (1 + 1e-9)).mean(1)
        half = stats.t.ppf(0.975, len(accused) - 1) * accused.std(ddof=1) / np.sqrt(len(accused))
        upper = accused.mean() + half if accused.any() else 1 - 0.025 ** (1 / len(accused))  # Clopper and Pearson's
        found[level] = (accused.mean(), max(0.0, accused.mean() - half), upper)
    return found


def reported(name):
    """The upper ends that the page states for a verdict, at each level."""
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |"))
    return [float(number) for number in re.findall(r"to (0?\.\d+)", row)]


def check(name, p_values):
    """No rate lies above its level by more than its interval, nor above what the page says."""
    found = rates(p_values)
    assert np.size(p_values) >= 400
    cells = " | ".join(f"{rate:.4f}, {low:.4f} to {high:.4f}" for rate, low, high in found.values())
    print(f"| {name} | {np.size(p_values):,} | {len(p_values)} | {cells} |")
    for (level, (rate, low, _)), stated in zip(found.items(), reported(name), strict=True):
        assert low <= level, (name, level, rate)
        assert rate <= stated, (name, level, rate)


def keyed(rng, kind):
    """Images of a key and labels for them."""
    seed = jax.random.key(int(rng.integers(2**31)))
    return abstract_images(seed, TRIGGERS, DIGITS.shape, "noise"), rng.integers(0, 10, TRIGGERS)


def test_labels_drawn_at_random(networks):
    """`verify`, without and with null models; and with labels that a network gives, where only those help."""
    alone, both, chosen = [], [], []
    for draw in range(SECRETS):
        rng = np.random.default_rng([1, draw])
        pixels, labels = keyed(rng, "noise")
        said = answers(networks, pixels / np.float32(255))
        null, suspects = split(rng)
        matches = (said == labels[None]).sum(1)
        alone.append([binomial_p_value(int(m), TRIGGERS, 0.1) for m in matches[suspects]])
        empirical = [empirical_p_value(m, matches[null]) for m in matches[suspects]]
        both.append(np.maximum(alone[-1], empirical))
        owner = next(place for place in range(len(said)) if place not in {*null, *suspects})
        matches = (said == said[owner][None]).sum(1)
        chosen.append(
            [
                max(binomial_p_value(int(m), TRIGGERS, 0.1), empirical_p_value(m, matches[null]))
                for m in matches[suspects]
            ]
        )
    secret, public = make_keys(pixels, labels, 10)
    task = HELD[:100], TRUTH[:100]
    stack = jax.tree.map(lambda leaf: leaf[null], networks)
    for place, wanted in zip(suspects[:3], both[-1][:3], strict=True):
        found = verify(secret, public, one(networks, place), null=stack, task=task, near=0.1)
        assert found.p_value == pytest.approx(wanted)
    check("key, binomial alone", alone)
    check("key, with null models", both)
    check("key whose labels a network gives, with null models", chosen)


def test_adversarial_triggers(networks):
    """Images moved, against eight networks, to where they answer labels drawn at random; those of all others too."""
    stack = jax.tree.map(lambda leaf: leaf[:8], networks)

    @jax.jit
    def moved(start, labels):
        def loss(x):
            scores = jax.vmap(lambda network: jax.nn.log_softmax(network.logits(x)))(stack)
            return -jnp.take_along_axis(scores, labels[None, :, None], 2).mean()

        step = lambda x, _: (jnp.clip(x - 0.02 * jnp.sign(jax.grad(loss)(x)), 0, 1), None)
        return jax.lax.scan(step, start, None, 30)[0]

    alone, both = [], []
    for draw in range(SECRETS):
        rng = np.random.default_rng([2, draw])
        rows = rng.choice(len(HELD), TRIGGERS, replace=False)
        labels = np.asarray(wrong_labels(jax.random.key(draw), jnp.asarray(TRUTH[rows]), 10))
        said = answers(networks, np.rint(255 * np.asarray(moved(HELD[rows], labels))) / np.float32(255))[8:]
        order = rng.permutation(len(said))
        null, suspects = order[:NULLS], order[NULLS:]
        matches = (said == labels[None]).sum(1)
        alone.append([binomial_p_value(int(m), TRIGGERS, 1 / 9) for m in matches[suspects]])
        both.append(np.maximum(alone[-1], [empirical_p_value(m, matches[null]) for m in matches[suspects]]))
    assert rates(alone)[0.01][0] > 0.5, "without null models innocent networks are accused"
    check("key with adversarial triggers, with null models", both)


@pytest.mark.parametrize("kind", ["overlay", "noise", "turned"])
def test_triggers_that_fall_together(networks, kind):
    """Zhang's and the plain triggers of EWE: the rank decides. The pooled tests alone accuse too often."""
    zhang, ewe, pooled = [], [], []
    for draw in range(SECRETS):
        rng = np.random.default_rng([3, draw])
        key = jax.random.key(draw)
        source, target = (int(c) for c in rng.choice(10, 2, replace=False))
        of = {"source": source, "target": target, "num_classes": 10, "count": TRIGGERS}
        if kind == "overlay":
            ink = (rng.random((*DIGITS.shape[:2], 1)) < 0.15).astype(np.float32)
            triggers = content_triggers(key, IMAGES, LABELS, **of, overlay=ink)
        elif kind == "noise":
            triggers = noise_triggers(key, IMAGES, LABELS, **of)
        else:
            rows = rng.choice(np.flatnonzero(np.asarray(LABELS) == source), TRIGGERS, replace=False)
            turned = jnp.rot90(jnp.asarray(IMAGES)[rows], axes=(1, 2))
            triggers = TriggerSet(turned, jnp.full(TRIGGERS, target))
        said = answers(networks, triggers.images)
        matches = (said == target).sum(1)
        null, suspects = split(rng)
        found = [ranked_evidence(int(m), matches[null], TRIGGERS) for m in matches[suspects]]
        zhang.append([one.p_value for one in found])
        few = measured_rate(matches[null[:8]], TRIGGERS)
        pooled.append([binomial_evidence(int(m), TRIGGERS, few).p_value for m in matches[suspects]])
        ewe.append([ownership_test(int(m), TRIGGERS, matches[null], 0.01).p_value for m in matches[suspects]])
    known = [lambda images, labels=labels: labels for labels in said]
    through = verify_triggers(known[suspects[0]], triggers, [known[place] for place in null])
    assert through.p_value == zhang[-1][0]
    rate, low, high = rates(pooled)[0.01]
    print(f"| {kind}, pooled rate of eight alone, at .01: {rate:.4f}, {low:.4f} to {high:.4f}")
    assert low > 0.01 or kind == "turned", "what this protects from"
    check(f"Zhang, {kind}", zhang)
    check(f"EWE, {kind}", ewe)


def test_labels_against_the_truth(networks):
    """Margin-based points and DAWN's keyed answers."""
    said, margin, dawn, rule = answers(networks, HELD), [], [], []
    victim = said[-1]
    index = {row.tobytes(): place for place, row in enumerate(np.rint(255 * HELD).astype(np.uint8))}
    places = lambda rows: [index[row.tobytes()] for row in np.rint(255 * np.asarray(rows)).astype(np.uint8)]
    for draw in range(SECRETS):
        rng = np.random.default_rng([4, draw])
        suspects = rng.permutation(len(said) - 1)[:SUSPECTS]
        mark = margin_mark(jax.random.key(draw), HELD, TRUTH, 10, TRIGGERS)
        rows = places(mark.images)
        margin.append([random_label_evidence(said[s][rows], mark.labels, mark.truth, 10).p_value for s in suspects])
        served = DawnOracle(lambda x: victim[places(x)], rng.bytes(32), rate=0.3, reveal=Reveal("label"),
                            input_shape=DIGITS.shape, num_classes=10)  # fmt: skip
        served(HELD)
        marks = served.registry.marks()
        found = [verify_dawn(lambda x, s=s: said[s][places(x)], marks, 10, dawn=served) for s in suspects[:10]]
        dawn.append([one.evidence.p_value for one in found])
        rule.append([0.0 if one.stolen else 1.0 for one in found])
        assert found[0].refused == 0
    assert verify_margin(lambda x: said[suspects[0]][rows], mark, 10).p_value == margin[-1][0]
    check("margin-based", margin)
    check("DAWN, keyed labels", dawn)
    check("DAWN, the paper's rule", rule)


def test_secrets_that_no_network_has_seen(networks):
    """Uchida's bits and directions of radioactive data: a network is exact against draws of the secret."""
    suspects = [one(networks, place) for place in range(12)]
    marker = one(networks, len(networks.head_kernel) - 1)
    rows = [aligned_rows(marker, suspect, HELD) for suspect in suspects]
    bits, directions = [], []
    for draw in range(SECRETS):
        mark = uchida_mark(jax.random.key(draw), marker, 48)
        bits.append([verify_uchida(suspect, mark).p_value for suspect in suspects])
        drawn = radioactive_mark(jax.random.key(draw), marker).directions
        directions.append([leaning(row, drawn).p_value for row in rows])
    check("Uchida", bits)
    check("radioactive data, white-box", directions)


def test_points_at_the_boundary(networks):
    """Frontier stitching: the rank keeps its level, the paper's rule does not."""
    ranks, paper = [], []
    for draw in range(SECRETS):
        rng = np.random.default_rng([6, draw])
        owner = int(rng.integers(NULLS + SUSPECTS + 1))
        keys = frontier_keys(jax.random.key(draw), one(networks, owner), IMAGES, LABELS, count=40, epsilon=0.1)
        said = answers(networks, keys.triggers.images)
        order = rng.permutation([place for place in range(len(said)) if place != owner])
        known = [lambda images, labels=labels: labels for labels in said]
        null = [known[place] for place in order[:NULLS]]
        found = [verify_frontier(known[place], keys, independents=null) for place in order[NULLS : NULLS + 2]]
        ranks.append([verdict.rank_p_value for verdict in found])
        paper.append([0.0 if verdict.claimed else 1.0 for verdict in found])
    assert rates(paper)[0.05][0] > 0.2
    check("frontier stitching, rank", ranks)


def test_labels_that_a_beacon_draws(networks):
    """Adversarial images, labels drawn afterwards: the binomial test is exact without null models."""
    from dfke_jax.watermarking import labels_by_beacon

    found = []
    base = keygen(10, images=HELD[:TRIGGERS], key=jax.random.key(0))
    said = answers(networks, np.rint(255 * HELD[:TRIGGERS]) / np.float32(255))
    for draw in range(SECRETS):
        secret, public = labels_by_beacon(*base, np.random.default_rng([8, draw]).bytes(32))
        matches = (said == secret.labels[None]).sum(1)[:SUSPECTS]
        found.append([binomial_p_value(int(m), TRIGGERS, 0.1) for m in matches])
    assert dataclasses.replace(public, beacon=None).fingerprint != public.fingerprint
    check("key with labels of a beacon, binomial alone", found)
