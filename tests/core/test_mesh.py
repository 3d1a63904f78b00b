"""Device meshes, and samples spread over them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from dfke_jax import core
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.synthesis import optimise_noise


@pytest.mark.parametrize(
    ("sizes", "shape"), [((None, None), (1, 4)), ((4, None), (4, 1)), ((None, 2), (2, 2)), ((2, 2), (2, 2))]
)
def test_sizes_left_open_take_the_rest(sizes, shape, four):
    mesh = core.device_mesh(*sizes, devices=four)
    assert mesh.axis_names == ("models", "samples")
    assert mesh.devices.shape == shape


def test_a_mesh_of_some_devices(four):
    assert core.device_mesh(2, devices=jax.devices()[:2]).devices.shape == (2, 1)


@pytest.mark.parametrize("sizes", [(3, None), (None, 3), (2, 4), (1, 1), (8, None)])
def test_sizes_that_do_not_fit(sizes, four):
    with pytest.raises(core.InputError, match=r"a mesh of \d models × \d samples needs \d+ devices, got 4"):
        core.device_mesh(*sizes, devices=four)


@pytest.mark.parametrize("sizes", [(0, None), (None, 0), (-2, -2)])
def test_sizes_below_one(sizes):
    with pytest.raises(core.InputError, match="mesh sizes must be at least 1"):
        core.device_mesh(*sizes)


def test_shard_splits_what_divides_and_replicates_the_rest(four):
    mesh = core.device_mesh(4, devices=four)
    tree = {"a": jnp.arange(8.0).reshape(8, 1), "b": jnp.arange(6.0), "c": jnp.zeros(())}
    placed = core.shard(tree, mesh, "models")
    assert {s.data.shape for s in placed["a"].addressable_shards} == {(2, 1)}
    assert {s.data.shape for s in placed["b"].addressable_shards} == {(6,)}
    assert placed["c"].sharding.is_fully_replicated
    for name in tree:
        np.testing.assert_array_equal(placed[name], tree[name])
    with pytest.raises(core.InputError, match="not 'rows'"):
        core.shard(tree, mesh, "rows")


def test_replicate_copies_to_every_device():
    placed = core.replicate(jnp.arange(3.0), core.device_mesh())
    assert len(placed.sharding.device_set) == jax.device_count()
    assert placed.sharding.is_fully_replicated


def test_constraint_inside_a_program(four):
    mesh = core.device_mesh(devices=four)
    split = jax.jit(lambda x: core.constrain_samples(2 * x))
    with jax.set_mesh(mesh):
        even, odd = split(jnp.ones((8, 2))), split(jnp.ones((6, 2)))
    assert even.sharding.spec == PartitionSpec("samples")
    assert {s.data.shape for s in even.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(odd, 2 * np.ones((6, 2)))
    array = jnp.ones((8, 2))
    assert core.constrain_samples(array) is array, "no mesh is in use"
    with jax.set_mesh(jax.make_mesh((4,), ("models",), axis_types=(AxisType.Auto,), devices=four)):
        assert core.constrain_samples(array) is array, "the mesh in use has no sample axis"
    with jax.set_mesh(mesh):
        assert len(core.default_sharding().device_set) == 4
    assert core.default_sharding().device_set == {jax.devices()[0]}


@jax.jit
def sharpen(teacher, start, labels):
    objective = lambda key, images: (cross_entropy(teacher(images), labels), jnp.zeros(len(labels)))
    return optimise_noise(jax.random.key(0), objective, start, steps=6, optimizer=optax.adam(0.05))


def test_noise_optimised_over_four_devices(four):
    teacher = Classifier.create(MLP(3, (8,)), jax.random.key(1), (6, 6, 1))
    start, labels = jax.random.uniform(jax.random.key(2), (8, 6, 6, 1)), jnp.arange(8) % 3
    alone = sharpen(teacher, start, labels)

    mesh = core.device_mesh(devices=four)
    arguments = core.replicate(teacher, mesh), *core.shard((start, labels), mesh, "samples")
    spread = sharpen(*arguments)
    assert {s.data.shape[0] for s in spread.images.addressable_shards} == {2}
    assert not np.allclose(alone.images, start, atol=1e-2)
    # float32; Adam divides by the gradient's own size, so an ulp of the gradient is an ulp of the step.
    np.testing.assert_allclose(spread.images, alone.images, atol=1e-5)
    np.testing.assert_allclose(spread.loss, alone.loss, atol=1e-5)
    text = sharpen.lower(*arguments).compile().as_text()
    for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert name not in text, "independent samples need no communication"

    with jax.set_mesh(mesh):  # the mesh in use splits what was not split
        split = sharpen(*core.replicate((teacher, start, labels), mesh))
    assert {s.data.shape[0] for s in split.images.addressable_shards} == {2}
    np.testing.assert_allclose(split.images, alone.images, atol=1e-5)
