"""What a run says when figures stop being finite, and when a generator makes images of one class alone."""

import jax
import jax.numpy as jnp
import pytest

from dfke_jax import core

KEY = jax.random.key(5)


def begin(start, key):
    return jnp.float32(0)


def counting(start, key, state):
    """`term` grows tenfold a step and overflows at step 3 + start; `whole` is made of it; `other` stays."""
    term = jnp.float32(10.0) ** (36 + state - start)
    return state + 1, {"other": state, "term": term, "whole": term - 1.0}


def test_all_terms_that_failed_first_are_named_with_what_they_were():
    method = core.method(begin, counting, jnp.float32(0))
    with pytest.raises(
        core.NonFiniteError, match=r"^metrics 'term', 'whole' are not finite at step 3 \(1e\+38, 1e\+38 a"
    ):
        core.run(method, KEY, 6, chunk=6)


def alternating(spells, key, state):
    """One class in steps 3 to 5, and from step 7 on; `spells` adds to the step."""
    step = state + spells
    full = ((step >= 3) & (step <= 5)) | (step >= 7)
    return state + 1, {
        "largest_class": jnp.float32(4),
        "largest_share": jnp.where(full, 1.0, 0.4),
        "largest_share/size": jnp.float32(0.5),
        "largest_class/size": jnp.float32(1),
    }


@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_a_collapse_is_a_row_of_steps_whatever_the_chunks(chunk):
    method = core.method(begin, alternating, jnp.float32(0))
    run = lambda **guard: core.run(method, KEY, 12, chunk=chunk, guard=core.Guard(**guard))
    with pytest.raises(core.CollapseError, match=r"100% of .* into class 4, and did so for 3 steps up to step 5: "):
        run(collapse="raise", patience=3)
    with pytest.raises(core.CollapseError, match="for 4 steps up to step 10: "):
        run(collapse="raise", patience=4)
    with pytest.warns(UserWarning, match="for 4 steps up to step 10: ") as said:
        assert run(patience=4).steps == 12
    assert len(said) == 1
    run(collapse="ignore", patience=1)
    run(collapse="raise", patience=6)
    with pytest.raises(core.CollapseError, match=r"50% of .* into class 1 \(head size\), and"):
        run(collapse="raise", share=0.5, patience=12)


def test_a_population_names_the_member():
    """The first member is twenty steps behind."""
    both = core.population(lambda spells: core.method(begin, alternating, spells), jnp.array([-20.0, 0.0]))
    with pytest.raises(
        core.CollapseError, match="images of member 1 into class 4, and did so for 3 steps up to step 5"
    ):
        core.run(both, jax.random.split(KEY, 2), 12, chunk=4, guard=core.Guard("raise", patience=3))


def test_bad_input():
    with pytest.raises(core.UnknownNameError, match="reaction to a collapse"):
        core.Guard("stop")
    with pytest.raises(core.InputError, match=r"share must lie in \(0, 1\]"):
        core.Guard(share=0)
