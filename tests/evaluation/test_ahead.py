import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from gdregs.evaluation.ahead import Draws


def make(key, factor, table=None):
    """A program of one input, which draws from a key that it closes over."""

    def function(x):
        first, second = jax.random.split(key)
        noise = jax.random.normal(first, (8,)) * factor
        if table is not None:
            noise = noise + jax.jit(lambda key: table * jax.random.uniform(key, (8,)))(second)
        return x * noise + jax.random.uniform(second, (8,)), jnp.sum(noise)

    return function


def count(program, name):
    """How often an operation stands in a program and in those that it calls."""
    found = 0
    for equation in program.eqns:
        found += equation.primitive.name == name
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
        found += sum(count(one, name) for one in inner if is_program(one))
    return found


def is_program(value):
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


KEYS = {"typed": jax.random.key(3), "raw": jax.random.PRNGKey(3)}


@pytest.mark.parametrize("kind", KEYS)
def test_several_programs_draw_the_same_numbers_once(kind):
    ways = [make(KEYS[kind], factor) for factor in (1.0, 2.0)]

    def choose(x, key, which, draws):
        ways = [make(key, factor) for factor in (1.0, 2.0)]
        programs = [jax.make_jaxpr(way)(x) for way in ways]
        rests = [draws(program) for program in programs]
        return jax.lax.switch(which, rests, x)

    def ahead(x, key, which):
        return choose(x, key, which, Draws().taken_from)

    x = jnp.arange(8.0)
    for which, way in enumerate(ways):
        found = jax.jit(ahead)(x, KEYS[kind], which)
        jax.tree.map(np.testing.assert_array_equal, tuple(found), jax.jit(way)(x))

    def within(x, key, which):
        return choose(x, key, which, core.jaxpr_as_fun)

    arguments = x, KEYS[kind], 1
    assert count(jax.make_jaxpr(ahead)(*arguments), "random_bits") == 2
    assert count(jax.make_jaxpr(within)(*arguments), "random_bits") == 4


def test_programs_with_tables_of_their_own_are_told_apart():
    key, x = jax.random.key(0), jnp.arange(8.0)
    draws = Draws()
    for size in (1.0, 5.0):
        way = make(key, 1.0, table=jnp.full(8, size))
        found = draws.taken_from(jax.make_jaxpr(way)(x))(x)
        for one, other in zip(found, way(x), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_other_keys_draw_other_numbers():
    x, draws = jnp.arange(8.0), Draws()
    first, second = (
        draws.taken_from(jax.make_jaxpr(make(jax.random.key(seed), 1.0))(x))(x)[0]
        for seed in (0, 1)
    )
    assert not np.any(first == second)


def test_effects_stay_where_they_are():
    key, seen = jax.random.key(0), []

    def noisy(x):
        noise = jax.random.normal(key, ())
        jax.debug.callback(lambda value: seen.append(float(value)), noise)
        return x + noise

    rest = Draws().taken_from(jax.make_jaxpr(noisy)(1.0))
    jax.effects_barrier()
    assert seen == []
    rest(1.0)
    jax.effects_barrier()
    assert len(seen) == 1


def test_a_program_without_keys_is_left_as_it_is():
    rest = Draws().taken_from(jax.make_jaxpr(lambda x: (2 * x, x))(3.0))
    assert rest(3.0) == [6.0, 3.0]
