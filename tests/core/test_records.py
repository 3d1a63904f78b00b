"""Records: what is a child and what is static, and that programs are compiled once for all that differ by arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dfke_jax import core
from dfke_jax.core import record, static_field


@record
class Sum:
    """A method that adds an array, times a number, to its state."""

    term: jax.Array
    start: jax.Array | None = None
    times: int = static_field(default=1)

    def init(self, key):
        return jnp.zeros(3) if self.start is None else self.start

    def step(self, key, state):
        return state + self.times * self.amount(), {"total": state.sum()}

    def amount(self):
        return self.term


@record
class SumOfSquares(Sum):
    power: int = static_field(default=2)

    def amount(self):
        return self.term**self.power


def test_arrays_are_children_and_static_fields_are_not():
    made = SumOfSquares(term=jnp.arange(3.0), times=4)
    leaves, structure = jax.tree.flatten(made)
    assert [leaf.shape for leaf in leaves] == [(3,)]
    again = jax.tree.unflatten(structure, [2 * leaves[0]])
    assert type(again) is SumOfSquares
    assert (again.times, again.power, again.start) == (4, 2, None)
    assert float(again.term[1]) == 2
    assert structure == jax.tree.structure(SumOfSquares(term=jnp.ones(3), times=4))
    assert structure != jax.tree.structure(SumOfSquares(term=jnp.ones(3), times=5))
    assert structure != jax.tree.structure(Sum(term=jnp.ones(3), times=4))


def test_fields_are_given_by_name_and_stay():
    with pytest.raises(TypeError):
        Sum(jnp.ones(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sum(term=jnp.ones(3)).times = 2
    assert dataclasses.replace(Sum(term=jnp.ones(3)), times=3).times == 3


def test_a_record_is_a_method_whose_programs_are_told_apart_by_static_fields_alone():
    compiled = jax.jit(lambda method, key: method.step(key, method.init(key))[0])
    key = jax.random.key(0)
    expected = {(Sum, 1): 3.0, (Sum, 2): 6.0, (SumOfSquares, 1): 9.0}
    for count, ((kind, times), value) in enumerate(expected.items(), 1):
        for _ in range(2):  # a new record, and another array, of the same program
            method = core.as_method(kind(term=jnp.full(3, 3.0), times=times))
            assert isinstance(method, core.Method)
            assert compiled(method, key).tolist() == [value] * 3
            compiled(core.as_method(kind(term=jnp.full(3, 2.0), times=times)), key)
        assert compiled._cache_size() == count


def test_an_attack_of_a_record_asks_and_tells():
    @record
    class Mirror:
        size: int = static_field()

        def init(self, key):
            return jnp.zeros(())

        def ask(self, key, state):
            return state, jax.random.uniform(key, (self.size,))

        def tell(self, key, state, rows, answers):
            return state + (rows - answers).sum(), {}

    attack = core.as_attack(Mirror(size=4))
    method = core.against(attack, lambda rows: rows - 1)
    assert float(method.step(jax.random.key(0), attack.init(None))[0]) == pytest.approx(4)
