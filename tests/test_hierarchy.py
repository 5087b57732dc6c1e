"""Directed acyclic graphs of latents: densities, samples, and what is wrong with a graph."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference


def normal(*parents):
    return dist.Normal(sum(parents), 1.0)


def test_density_and_samples_follow_the_graph(float64):
    """And the density that each latent has of its own, also through a transformation."""
    phi, _, _, x = reference.init(0)
    size = 20_000

    @jax.jit
    def run(posterior):
        z = posterior.sample(jax.random.key(1), (size,))
        few = jax.tree.map(lambda leaf: leaf[:5], z)
        noise = {}
        for name, parents in reference.POSTERIOR.items():
            loc, scale = reference.loc_and_scale(phi[name], {p: z[p] for p in parents}, x)
            with jax.numpy_rank_promotion("allow"):
                noise[name] = (z[name] - loc) / scale
        means = jax.tree.map(lambda leaf: (jnp.mean(leaf, 0), jnp.var(leaf, 0)), noise)
        together = [jnp.mean(noise[a] * noise[b], 0) for a, b in ("ab", "ac", "bc")]
        expected = reference.density(phi, reference.POSTERIOR, few, x)
        # Moving a latent changes its own density and its children's, and no other.
        moved = {**few, "b": few["b"] + 1}
        terms, moved = posterior.log_probs(few), posterior.log_probs(moved)
        return z, means, together, posterior.log_prob(few), expected, terms, moved

    posterior = models.posterior(phi, x)
    again = jax.tree.unflatten(jax.tree.structure(posterior), jax.tree.leaves(posterior))
    z, means, together, density, expected, terms, moved = jax.device_get(run(again))
    assert {name: value.shape for name, value in z.items()} == dict.fromkeys("abc", (size, 3, 2))
    np.testing.assert_allclose(density, expected, rtol=1e-12)
    for mean, variance in means.values():
        np.testing.assert_allclose(mean, 0, atol=5 / size**0.5)
        np.testing.assert_allclose(variance, 1, atol=5 * (2 / size) ** 0.5)
    np.testing.assert_allclose(together, 0, atol=5 / size**0.5)  # each has a key of its own
    assert set(terms) == set(z)
    np.testing.assert_allclose(sum(terms.values()), density, rtol=1e-12)
    changed = {name for name in terms if not np.allclose(terms[name], moved[name])}
    assert changed == {"b"} | {c for c, parents in reference.POSTERIOR.items() if "b" in parents}


def test_nodes_may_come_in_any_order_and_as_distributions():
    graph = {
        "top": (dist.Normal(0.0, 1.0), ()),
        "left": (normal, ("top",)),
        "right": (normal, ("top",)),
        "bottom": (normal, ("right", "top", "left")),
    }
    z = {name: np.full(3, value) for name, value in zip(graph, (0.1, 0.2, 0.3, 0.4), strict=True)}

    @jax.jit
    def densities(z):
        return [
            gdregs.Hierarchy({name: graph[name] for name in order}).log_prob(z)
            for order in (graph, reversed(graph), sorted(graph))
        ]

    # The noises, each less the sum of its parents: 0.1, 0.1, 0.2 and -0.2.
    expected = -0.5 * (0.1**2 + 0.1**2 + 0.2**2 + 0.2**2) - 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(densities(z), np.full((3, 3), expected), rtol=1e-6)


def test_cycles_are_named():
    nodes = {
        "a": (normal, ("c",)),
        "b": (normal, ("a",)),
        "c": (normal, ("b",)),
        "d": (normal, ("a",)),
        "e": (normal, ()),
    }
    with pytest.raises(ValueError, match=r"latents \['a', 'c', 'b'\] form a cycle"):
        gdregs.Hierarchy(nodes)
    with pytest.raises(ValueError, match=r"latents \['a'\] form a cycle"):
        gdregs.Hierarchy({"a": (normal, ("a",))})


def test_unknown_parents_are_named():
    with pytest.raises(
        ValueError, match=r"Latent 'z1' has unknown parents \['z3'\].*\['z1', 'z2'\]"
    ):
        gdregs.Hierarchy({"z1": (normal, ("z3", "z2")), "z2": (normal, ())})


@pytest.mark.parametrize("node", [normal, (normal,), (normal, "z2"), (3, ()), (normal, (), ())])
def test_nodes_are_pairs(node):
    with pytest.raises(TypeError, match=r"Latent 'z1' must be a pair \(conditional, parents\)"):
        gdregs.Hierarchy({"z1": node})


def test_a_child_must_be_a_function_of_its_parents():
    with pytest.raises(TypeError, match="its conditional must be a function"):
        gdregs.Hierarchy({"a": (normal, ()), "b": (dist.Normal(0.0, 1.0), ("a",))})


def test_a_child_that_ignores_the_samples_of_its_parents_is_named():
    graph = {"a": (normal, ()), "b": (lambda a: dist.Normal(0.0, 1.0), ("a",))}
    with pytest.raises(ValueError, match="Latent 'b' was drawn with shape"):
        jax.eval_shape(lambda: gdregs.Hierarchy(graph).sample(jax.random.key(0), (4,)))


def test_other_latents_are_named():
    hierarchy = gdregs.Hierarchy({"a": (normal, ()), "b": (normal, ("a",))})
    for z in ({"a": np.zeros(3)}, np.zeros(3)):
        for function in (hierarchy.log_prob, lambda z: gdregs.reexpress(hierarchy, z)):
            with pytest.raises(ValueError, match=r"over the latents \['a', 'b'\] was given"):
                function(z)


def test_forgotten_event_axes_are_named():
    hierarchy = gdregs.Hierarchy(
        {"a": (lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1), ()), "b": (normal, ("a",))}
    )
    with pytest.raises(ValueError, match="different shapes"):
        jax.eval_shape(hierarchy.log_prob, {"a": np.zeros((4, 2)), "b": np.zeros((4, 2))})
