"""What every method promises, checked over a table of all of them.

A new method adds one line to `METHODS`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_files import example
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.loop import _chunk
from dfke_jax.data.augment import alternating_flip, compose, flip, reflect_shift
from dfke_jax.data.augment import shift as shifted
from dfke_jax.distillation import (
    AttentionSettings,
    ClassImpressionSettings,
    CMISettings,
    DAFLSettings,
    DeGANSettings,
    DFADSettings,
    DFKASettings,
    DFNDSettings,
    DFQSettings,
    FastSettings,
    GroupSettings,
    ImpressionSettings,
    InversionSettings,
    NAYERSettings,
    RDSKDSettings,
    RecordSettings,
    RelationSettings,
    SamplingSettings,
    WithinSettings,
    ZSKTSettings,
    adaptive_deep_inversion,
    attention_distillation,
    class_impressions,
    cmi,
    cross_entropy_training,
    dafl,
    data_impressions,
    deep_inversion,
    degan,
    dfad,
    dfka,
    dfnd,
    dfq,
    fast_dfkd,
    from_records,
    gan_sampling,
    hint_training,
    knowledge_distillation,
    knowledge_within,
    nayer,
    rdskd,
    record_activations,
    relation_distillation,
    representation_distillation,
    statistics_generators,
    zskt,
)
from dfke_jax.evaluation import watched
from dfke_jax.nn.airbench import Airbench
from dfke_jax.nn.airbench_training import AirbenchSettings, airbench_training
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.contrastive import contrastive_training
from dfke_jax.nn.heads import Heads
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser
from dfke_jax.nn.two_conv import TwoConv
from dfke_jax.oracle import Reveal
from dfke_jax.watermarking import (
    EntangledSettings,
    EntangledWatermark,
    MarginSettings,
    MarkingSettings,
    TriggerSet,
    entangled_training,
    keygen,
    margin_mark,
    margin_training,
    mark,
)
from dfke_jax.watermarking.removal import CleanseSettings, TrainingSettings, fine_tuning, trigger_reversal

SHAPE = (6, 6, 1)
KEY = jax.random.key(21)
IMAGES = jax.random.uniform(jax.random.key(22), (12, *SHAPE))
LABELS = jnp.arange(12) % 3
PROXY = jax.random.uniform(jax.random.key(23), (5, 8, 8, 1))


@functools.cache
def network(seed, units=(16,), batch_norm=False):
    return Classifier.create(MLP(3, units, batch_norm=batch_norm), jax.random.key(seed), SHAPE)


@functools.cache
def record(seed):
    return record_activations(network(seed), np.asarray(IMAGES), np.asarray(LABELS))


def impressions(seed, control=False, **settings):
    settings = {"steps": 3, "temperature": 2.0, "start": "uniform", **settings}
    return data_impressions(network(seed), ImpressionSettings(**settings), 12, 3, control=control)


def duelling(make, settings, seed, **changes):
    teacher, student = (
        Classifier.create(MLP(3, units), jax.random.key(of), (8, 8, 1)) for units, of in (((16,), seed), ((4,), 9))
    )
    small = {"batch_size": 4, "latent": 3, "width": 2, "schedule": "constant", "student_optimizer": "sgd"}
    rates = {"generator_optimizer": "sgd", "generator_rate": 0.01, "student_rate": 0.01}
    return make(teacher, student, settings(**small, **rates, **changes))


def matched(seed):
    """A teacher whose statistics can be matched, of images that a generator makes."""
    return Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(seed), (8, 8, 1))


def drawn(weights, z):
    """A generator that is one product."""
    return jax.nn.sigmoid(z @ weights).reshape(-1, *SHAPE)


def banked(make, settings, seed, *, changes=None, **arguments):
    student = Classifier.create(MLP(3, (4,)), jax.random.key(9), (8, 8, 1))
    small = {"batch_size": 3, "latent": 2, "width": 2, "steps": 2, "student_steps": 2, "student_batch": 4}
    rounds = {"rounds": 3, "warm_up": 1, "schedule": "constant"}
    return make(matched(seed), student, settings(**{**small, **rounds, **(changes or {})}), **arguments)


def attention(seed):
    # as large as what is not to be baked in must be beside the tables of convolutions
    teacher, student = (Classifier.create(TwoConv(3, (2, 8), 64), jax.random.key(of), (8, 8, 1)) for of in (seed, 9))
    images = jnp.tile(jnp.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0))), (2, 1, 1, 1))
    return attention_distillation(student, teacher, images, AttentionSettings(10.0), steps=4, batch_size=5)


def wild(seed):
    settings = DFNDSettings(steps=4, batch_size=5, optimizer="adam", learning_rate=0.01, schedule="constant")
    return dfnd(network(seed), network(9, (4,)), IMAGES, settings)


def watched_training(seed):
    method = cross_entropy_training(network(0), IMAGES * (seed + 1) / 2, LABELS, steps=2, batch_size=5)
    return watched(method, network(0), IMAGES, LABELS, 2, share=1.0)


def inversion(seed, **settings):
    return deep_inversion(network(seed, batch_norm=True), InversionSettings(steps=3, **settings), 12, 3)


def adaptive(seed):
    student, teacher = network(9, (4,)), network(seed, batch_norm=True)
    settings = InversionSettings(steps=2)
    return adaptive_deep_inversion(teacher, student, settings, 12, 3, student_steps=2, student_batch=4)


def begin(key):
    return {"weights": 0.1 * jax.random.normal(key, (36, 3)), "asked": jnp.zeros((), jnp.int32)}


def ask(key, state):
    return {**state, "asked": state["asked"] + 5}, jax.random.uniform(key, (5, *SHAPE))


def tell(key, state, rows, answers):
    flat = rows.reshape(5, -1)
    error = flat @ state["weights"] - answers
    return {**state, "weights": state["weights"] - 0.01 * flat.T @ error}, {"loss": jnp.square(error).mean()}


def toy_attack(seed):
    return core.against(core.Attack(Partial(begin), Partial(ask), Partial(tell)), network(seed))


def mean_impressions(seed):
    of = example("howto/mean_impressions")
    return of.mean_impressions(network(seed), of.MeanSettings(steps=3, start="uniform"), 12, 3)


def unsure_queries(seed):
    of = example("howto/unsure_queries")
    settings = of.UnsureSettings(queries_per_step=3, choice=2, updates=2)
    attack = of.unsure_queries(network(9, (4,)), IMAGES, Reveal("logits"), settings)
    return core.against(attack, network(seed))


def marking(seed):
    key, _ = keygen(3, shape=SHAPE, count=4, kind="noise", key=jax.random.key(7))
    settings = MarkingSettings(batch_size=5, learning_rate=0.05)
    return mark(network(seed), IMAGES * (seed + 1) / 2, LABELS, key, settings, pretrained=True)


def watermarked(seed):
    mark = EntangledWatermark(TriggerSet(1 - IMAGES[:4], jnp.zeros(4, jnp.int32)), IMAGES[::3], (-1, -1))
    settings = EntangledSettings(
        layers=("dense1",), entanglement=(2.0,), temperatures=(5.0,), batch_size=4, ratio=1.5, target=0
    )
    return entangled_training(network(seed), IMAGES, LABELS, mark, settings)


@functools.cache
def augmentation():
    return compose(shifted(1), flip())


# The exact gradient of a bias in front of batch normalisation is zero. Adam divides what rounding leaves of it by its
# own size, so that two programs of the same mathematics differ by whole steps there; networks with normalisation are
# therefore trained by SGD in this table.
METHODS = {
    "training with labels": lambda seed: cross_entropy_training(
        network(seed), IMAGES * (seed + 1) / 2, LABELS, steps=4, batch_size=5
    ),
    "training with normalisation and augmentation": lambda seed: cross_entropy_training(
        network(0, batch_norm=True),
        IMAGES * (seed + 1) / 2,
        LABELS,
        steps=4,
        batch_size=5,
        augment=augmentation(),
        optimizer="sgd",
    ),
    "training of the speed run": lambda seed: airbench_training(
        Classifier.create(Airbench(3, (2,)), jax.random.key(9), SHAPE),
        IMAGES * (seed + 1) / 2,
        LABELS,
        AirbenchSettings(batch_size=5, steps=4),
        augment=reflect_shift(1),
        flip=Partial(alternating_flip),
    ),
    "distillation of a table": lambda seed: knowledge_distillation(
        network(9, (4,)), network(seed), IMAGES, steps=4, batch_size=5
    ),
    "distillation of a living teacher": lambda seed: knowledge_distillation(
        network(9, (4,), True),
        network(seed),
        IMAGES,
        steps=4,
        batch_size=5,
        augment=augmentation(),
        optimizer="sgd",
    ),
    "distillation with labels": lambda seed: knowledge_distillation(
        network(9, (4,)), network(seed), IMAGES, labels=LABELS, label_weight=0.5, steps=4, batch_size=5
    ),
    "contrastive training": lambda seed: contrastive_training(
        network(0),
        IMAGES * (seed + 1) / 2,
        augment=augmentation(),
        optimizer=optimiser("sgd", 0.1),
        batch_size=5,
        projection=3,
    ),
    "distillation of representations": lambda seed: representation_distillation(
        network(9), IMAGES, network(seed).features(IMAGES), steps=4, batch_size=5
    ),
    "distillation of attention maps": attention,
    "distillation of hints": lambda seed: hint_training(
        network(9, (4, 3)), network(seed, (6, 5)), IMAGES, steps=4, batch_size=5
    ),
    "distillation of relations": lambda seed: relation_distillation(
        network(9, (4,)), network(seed), IMAGES, RelationSettings(), steps=4, batch_size=5, optimizer="sgd"
    ),
    "DFND": wild,
    "training that is watched": watched_training,
    "data impressions": impressions,
    "data impressions with a prior": lambda seed: impressions(seed, total_variation=(1e-3, 1e-1), l2=1e-3, jitter=1),
    "data impressions as released": lambda seed: impressions(seed, released=True),
    "data impressions, control": lambda seed: impressions(seed, control=True, start="smooth"),
    "class impressions": lambda seed: class_impressions(network(seed), ClassImpressionSettings(steps=3), 12, 3),
    "activation records, top": lambda seed: from_records(
        network(seed), record(seed), RecordSettings(layers="top", steps=3), 12, 3
    ),
    "activation records, all": lambda seed: from_records(network(seed), record(seed), RecordSettings(steps=3), 12, 3),
    "DeepInversion": inversion,
    "DeepInversion, squared": lambda seed: inversion(seed, form="squared"),
    "DeepInversion, kl": lambda seed: inversion(seed, form="kl", parametrisation="free"),
    "DeepDream": lambda seed: deep_inversion(network(seed), InversionSettings(steps=3, statistics=0.0, l2=0.1), 12, 3),
    "adaptive DeepInversion": adaptive,
    "DAFL": lambda seed: duelling(dafl, DAFLSettings, seed),
    "DFAD": lambda seed: duelling(dfad, DFADSettings, seed, student_steps=2),
    "ZSKT": lambda seed: duelling(zskt, ZSKTSettings, seed, student_steps=2, attention=0.0),
    "samples of a GAN": lambda seed: gan_sampling(
        Partial(drawn, jnp.eye(36)[:4]),
        network(seed),
        network(9, (4,)),
        SamplingSettings(batch_size=5, latent=4, student_optimizer="sgd"),
    ),
    "DeGAN": lambda seed: degan(matched(seed), PROXY, DeGANSettings(batch_size=4, latent=2, width=2, entropy=0.1)),
    "RDSKD": lambda seed: rdskd(matched(seed), RDSKDSettings(batch_size=4, latent=2, width=2)),
    "amalgamation": lambda seed: dfka(
        (matched(seed), matched(8)),
        Classifier.create(Heads(MLP(6, (4,)), (3, 3)), jax.random.key(9), (8, 8, 1)),
        DFKASettings(batch_size=4, latent=2, width=2, generator_optimizer="sgd"),
    ),
    "DFQ": lambda seed: dfq(
        matched(seed),
        Classifier.create(MLP(3, (4,)), jax.random.key(9), (8, 8, 1)),
        DFQSettings(batch_size=4, latent=3, width=2, schedule="constant", student_steps=2, generator_optimizer="sgd"),
    ),
    "CMI": lambda seed: banked(
        cmi, CMISettings, seed, changes={"negatives": 2, "feature_bank": 4, "projection": 2}, augment=flip()
    ),
    "Fast-DFKD": lambda seed: banked(fast_dfkd, FastSettings, seed, augment=flip()),
    "Fast-DFKD, Reptile": lambda seed: banked(fast_dfkd, FastSettings, seed, changes={"meta": "reptile"}),
    "NAYER": lambda seed: banked(nayer, NAYERSettings, seed),
    "generators of class groups": lambda seed: statistics_generators(
        matched(seed), GroupSettings(groups=2, batch_size=4, latent=2, width=2)
    ),
    "the knowledge within": lambda seed: knowledge_within(
        network(seed, batch_norm=True), WithinSettings(steps=2), 12, 3
    ),
    "marking by a backdoor": marking,
    "fine-tuning under a fresh last layer": lambda seed: fine_tuning(
        network(seed), IMAGES, LABELS, "rtll", TrainingSettings(steps=4, batch_size=5)
    ),
    "trigger reversal": lambda seed: trigger_reversal(network(seed), IMAGES, CleanseSettings(batches=2, batch_size=4)),
    "margin-based watermark": lambda seed: margin_training(
        network(seed),
        IMAGES * (seed + 1) / 2,
        LABELS,
        margin_mark(KEY, 1 - IMAGES, LABELS, 3, 6),
        MarginSettings(2, 0.01, 4),
        steps=4,
        batch_size=5,
    ),
    "entangled watermark": watermarked,
    "a toy attack": toy_attack,
    # the examples of docs/howto
    "mean impressions": mean_impressions,
    "unsure queries": unsure_queries,
}


@functools.cache
def built(name, seed=0):
    return METHODS[name](seed)


# Programs that differ from a neighbour in the table by one term of the loss or one option.
VARIANTS = {
    "training with normalisation and augmentation",
    "class impressions",
    "activation records, all",
    "samples of a GAN",
    "margin-based watermark",
    "entangled watermark",
    "training of the speed run",
    "training that is watched",
    "contrastive training",
    "distillation of a living teacher",
    "distillation of attention maps",
    "distillation of hints",
    "distillation of relations",
    "distillation of representations",
    "distillation of a table",
    "distillation with labels",
    "data impressions with a prior",
    "data impressions as released",
    "data impressions, control",
    "activation records, top",
    "DeepInversion, squared",
    "DeepInversion, kl",
    "DeepDream",
    "DAFL",
    "DFAD",
    "ZSKT",
    "CMI",
    "marking by a backdoor",
    "mean impressions",
    "unsure queries",
}
WITH_A_GENERATOR = {
    "DAFL", "DFAD", "ZSKT", "DFQ", "DeGAN", "RDSKD", "amalgamation", "CMI", "Fast-DFKD", "Fast-DFKD, Reptile", "NAYER",
    "generators of class groups",
}  # fmt: skip
# Programs over an engine that another row of the table has.
AT_LENGTH = {
    "ZSKT", "DFAD", "DFQ", "DeGAN", "RDSKD", "amalgamation", "CMI", "Fast-DFKD", "Fast-DFKD, Reptile", "NAYER",
    "generators of class groups", "the knowledge within", "training of the speed run", "training that is watched",
    "contrastive training", "distillation with labels", "distillation of attention maps", "distillation of hints",
    "data impressions with a prior", "data impressions as released", "activation records, top", "DeepInversion, squared",
    "DeepInversion, kl", "DeepDream", "adaptive DeepInversion", "fine-tuning under a fresh last layer", "trigger reversal",
}  # fmt: skip
every_method, every_kind = (
    pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in rare)) for n in METHODS])
    for rare in (AT_LENGTH, VARIANTS | AT_LENGTH)
)


@jax.jit
def initialise(method, key):
    return method.init(key)


def chunk(method, key, state, start=0):
    """Two steps of the loop; the state is copied, because the loop's is donated."""
    return _chunk(method, key, jax.tree.map(jnp.copy, state), jnp.uint32(start), 2)[:2]


@functools.cache
def two_steps(name, seed=0, key=0):
    """State before and after two compiled steps, and their metrics."""
    key = jax.random.fold_in(KEY, key)
    method = built(name, seed)
    before = initialise(method, key)
    return before, *chunk(method, key, before)


def describe(tree):
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


def raw(leaf):
    typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed else leaf)


def same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return all(
        a.dtype == b.dtype and np.array_equal(raw(a), raw(b))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def assert_close(first, second, rtol=1e-4, atol=2e-5):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(raw(a), raw(b), rtol=rtol, atol=atol)


@every_method
def test_is_a_pytree_of_two_partials(name):
    method = built(name)
    assert isinstance(method, core.Method)
    assert isinstance(method.init, Partial)
    assert isinstance(method.step, Partial)
    assert all(isinstance(leaf, jax.Array | np.ndarray | float | int) for leaf in jax.tree.leaves(method))


@every_method
def test_state_keeps_its_structure_shapes_and_types(name):
    before, after, _ = two_steps(name)
    assert describe(after) == describe(before)
    once, _ = jax.eval_shape(built(name).step, KEY, before)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(once)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(before)
    ]
    assert not same_bits(before, after), "two steps change something"


@every_method
def test_metrics_are_finite_scalars(name):
    before, after, metrics = two_steps(name)
    single = jax.eval_shape(built(name).step, KEY, before)[1]
    assert {leaf.shape for leaf in jax.tree.leaves(single)} <= {()}
    assert bool(single) != name.endswith("control"), "only a control has nothing to report"
    for value in metrics.values():
        assert value.shape == (2,)
        assert value.dtype == jnp.float32
        assert np.isfinite(value).all()
    assert all(np.isfinite(raw(leaf)).all() for leaf in jax.tree.leaves(after))


@every_kind
def test_compiled_and_scanned_equal_eager(name):
    before, after, metrics = two_steps(name)
    method, key, state, history = built(name), jax.random.fold_in(KEY, 0), before, []
    for step in range(2):
        state, reported = method.step(jax.random.fold_in(key, step), state)
        history.append(reported)
    assert_close(state, after)
    assert_close(jax.tree.map(lambda *values: jnp.stack(values), *history), metrics)


@every_method
def test_the_same_key_gives_the_same_bits_and_another_key_others(name):
    before, after, metrics = two_steps(name)
    method, key = built(name), jax.random.fold_in(KEY, 0)
    again = initialise(method, key)
    assert same_bits(again, before)
    assert same_bits(chunk(method, key, again), (after, metrics))
    assert not same_bits(two_steps(name, key=1)[1], after)


@every_kind
def test_vmap_over_keys_equals_single_runs(name):
    method, keys = built(name), jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(2))

    def whole(method, key):
        steps = lambda state, step: method.step(jax.random.fold_in(key, step), state)
        return jax.lax.scan(steps, method.init(key), jnp.arange(2))

    states, metrics = jax.jit(jax.vmap(whole, (None, 0)))(method, keys)
    for i in range(2):
        _, state, reported = two_steps(name, key=i)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], states), state)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], metrics), reported)


@every_kind
def test_a_population_of_one_is_the_single_run(name):
    _, after, metrics = two_steps(name)
    one, keys = core.population(built(name), strategy="map"), jax.random.fold_in(KEY, 0)[None]
    states, reported = chunk(one, keys, initialise(one, keys))
    assert_close(jax.tree.map(lambda leaf: leaf[0], states), after)
    assert_close(jax.tree.map(lambda leaf: leaf[:, 0], reported), metrics)


@every_method
def test_a_checkpoint_continues_with_the_same_bits(name, tmp_path):
    _, after, _ = two_steps(name)
    method, key = built(name), jax.random.fold_in(KEY, 0)
    core.save(tmp_path / "state", after, config=name)
    restored = core.restore(tmp_path / "state", jax.eval_shape(method.init, key), config=name)
    assert same_bits(restored, after)
    assert same_bits(chunk(method, key, restored, 2), chunk(method, key, after, 2))


def constants(jaxpr):
    """Bytes of the constants of a program, of those inside it too."""
    total = sum(np.asarray(value).nbytes for value in getattr(jaxpr, "consts", ()))
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in inner.eqns:
        parts = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        total += sum(constants(part) for part in parts if hasattr(part, "eqns"))
    return total


@every_method
def test_nothing_is_baked_into_the_program(name):
    before, _, _ = two_steps(name)
    jaxpr = jax.make_jaxpr(_chunk, static_argnums=4)(built(name), KEY, before, jnp.uint32(0), 2)
    # the bands and phases of convolutions are tables of a few hundred numbers
    most = 4000 if name in WITH_A_GENERATOR or name == "distillation of attention maps" else 300
    most = 1000 if name == "training of the speed run" else most  # its images are 12·36·4 bytes
    assert constants(jaxpr) < most, "a layer of the smallest network has 36·16·4 bytes, and 64·16·4 with a generator"


@every_method
def test_another_teacher_runs_the_same_program(name):
    two_steps(name, seed=0)
    compiled = _chunk._cache_size()
    _, other, _ = two_steps(name, seed=1)
    assert _chunk._cache_size() == compiled
    control = name.endswith("control")
    assert same_bits(other, two_steps(name, seed=0)[1]) == control, "its parameters are used, save by a control"
