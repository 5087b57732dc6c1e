import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from gdregs.evaluation.ahead import compute_ahead


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

    def choose(x, key, which, rests_of):
        ways = [make(key, factor) for factor in (1.0, 2.0)]
        programs = [jax.make_jaxpr(way)(x) for way in ways]
        return jax.lax.switch(which, rests_of(programs), x)

    def ahead(x, key, which):
        return choose(x, key, which, compute_ahead)

    x = np.arange(8, dtype=np.float32)

    @jax.jit
    def both(x, key):
        return [(ahead(x, key, which), way(x)) for which, way in enumerate(ways)]

    for found, expected in both(x, KEYS[kind]):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)

    def within(x, key, which):
        return choose(x, key, which, lambda programs: list(map(core.jaxpr_as_fun, programs)))

    arguments = x, KEYS[kind], 1
    assert count(jax.make_jaxpr(ahead)(*arguments), "random_bits") == 2
    assert count(jax.make_jaxpr(within)(*arguments), "random_bits") == 4


def test_programs_with_tables_of_their_own_are_told_apart():
    key = jax.random.key(0)
    ways = [make(key, 1.0, table=np.full(8, size, np.float32)) for size in (1.0, 5.0)]

    @jax.jit
    def both(x):
        rests = compute_ahead([jax.make_jaxpr(way)(x) for way in ways])
        return [(rest(x), way(x)) for rest, way in zip(rests, ways, strict=True)]

    for found, expected in both(np.arange(8, dtype=np.float32)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_other_keys_draw_other_numbers():
    ways = [make(jax.random.key(seed), 1.0) for seed in (0, 1)]

    @jax.jit
    def draws(x):
        return [rest(x)[0] for rest in compute_ahead([jax.make_jaxpr(way)(x) for way in ways])]

    first, second = map(np.asarray, draws(np.arange(8, dtype=np.float32)))
    assert not np.any(first == second)


def inside(ways, data, table, key, x):
    """The program of a choice between ways, the branches' operations, and those before."""

    def run(data, table, key, x, which):
        programs = [jax.make_jaxpr(lambda x, way=way: way(data, table, key, x))(x) for way in ways]
        return jax.lax.switch(which, compute_ahead(programs), x)

    program = jax.make_jaxpr(run)(data, table, key, x, 0)
    both = jax.jit(
        lambda *parts: [(run(*parts, which)[0], way(*parts)) for which, way in enumerate(ways)]
    )
    for found, expected in both(data, table, key, x):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    branches = next(one for one in program.eqns if one.primitive.name == "cond").params["branches"]
    names = [{one.primitive.name for one in branch.eqns} for branch in branches]
    return names, {one.primitive.name for one in program.eqns}


@pytest.fixture
def parts():
    data = np.linspace(-1, 1, 160, dtype=np.float32).reshape(20, 8)
    table = np.linspace(0.1, 1, 40, dtype=np.float32).reshape(8, 5)
    return data, table, jax.random.key(1), np.arange(1, 21, dtype=np.float32)


def test_what_depends_on_no_draw_is_computed_before(parts):
    def way(power):
        return lambda data, table, key, x: x * jnp.sum((data @ table) ** power, axis=1)

    within, before = inside([way(2), way(3)], *parts)
    assert all("dot_general" not in names and "integer_pow" in names for names in within)
    assert "dot_general" in before


def test_what_one_program_alone_has_stays_in_it(parts):
    ways = [
        lambda data, table, key, x: x * jnp.sum(data @ table, axis=1),
        lambda data, table, key, x: x + jnp.sum(data, axis=1),
    ]
    within, before = inside(ways, *parts)
    assert ["dot_general" in names for names in within] == [True, False]
    assert "dot_general" not in before


def test_what_uses_both_draws_and_data_stays(parts):
    """Else the compiler has the noise beside all that uses it, and draws it for each."""

    def way(factor):
        def run(data, table, key, x):
            return factor * x * jnp.sum((data * jax.random.normal(key, (20, 8))) @ table, axis=1)

        return run

    within, before = inside([way(2.0), way(3.0)], *parts)
    assert all("dot_general" in names and "random_bits" not in names for names in within)
    assert "dot_general" not in before


def test_what_is_only_spread_out_is_not_handed_over(parts):
    def way(factor):
        def run(data, table, key, x):
            wide = jnp.broadcast_to(jnp.sum(data @ table)[None, None], (20, 1000))
            return factor * x * jnp.sum(wide * x[:, None], axis=1)

        return run

    within, _ = inside([way(2.0), way(3.0)], *parts)
    assert all("broadcast_in_dim" in names and "dot_general" not in names for names in within)


def test_a_few_numbers_are_computed_where_they_are_used(parts):
    def way(size, power):
        def run(data, table, key, x):
            return x * jnp.sum(jnp.exp(jnp.tile(table[0, 0] + data[0], size)) ** power)

        return run

    for size, where in ((1, [True, True]), (100, [False, False])):
        within, _ = inside([way(size, 2), way(size, 3)], *parts)
        assert ["exp" in names for names in within] == where


def test_effects_stay_where_they_are():
    key, seen = jax.random.key(0), []

    def noisy(x):
        noise = jax.random.normal(key, ())
        jax.debug.callback(lambda value: seen.append(float(value)), noise)
        return x + noise

    [rest] = compute_ahead([jax.make_jaxpr(noisy)(1.0)])
    jax.effects_barrier()
    assert seen == []
    rest(1.0)
    jax.effects_barrier()
    assert len(seen) == 1


def test_a_program_without_constants_is_left_as_it_is():
    [rest] = compute_ahead([jax.make_jaxpr(lambda x: (2 * x, x))(3.0)])
    assert rest(3.0) == [6.0, 3.0]
