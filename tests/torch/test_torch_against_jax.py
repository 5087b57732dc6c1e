"""The bound for PyTorch against that for JAX, from the same samples and offsets."""

import itertools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs  # noqa: E402
import gdregs.torch as gt  # noqa: E402
import models  # noqa: E402
import reference  # noqa: E402
from gdregs.evaluation import resampling  # noqa: E402
from gdregs.evaluation.keys import keys_of_samples  # noqa: E402
from gdregs.shared.tables import (  # noqa: E402
    POSTERIOR_ESTIMATORS,
    PosteriorEstimator,
    PosteriorMix,
    PriorEstimator,
)
from gdregs.torch import weights  # noqa: E402

dist = torch.distributions

BATCH, SIZE = 2, 4


class Own(gt.Objective):
    """An objective of a user's own: derivatives by autograd."""

    def __call__(self, log_weights):
        size = np.log(len(log_weights))
        iwae = torch.logsumexp(log_weights / 2, 0) - size
        return torch.tanh(log_weights / 9).mean(0) + iwae**2


OURS = {
    "elbo": gt.ELBO(),
    "iwae": gt.IWAE(),
    "vr-iwae 0.3": gt.VRIWAE(0.3),
    "vr-iwae 2": gt.VRIWAE(2.0),
    "jvi": gt.JVI(),
    "own": Own(),
}
OBJECTIVES = {name: OURS[name] for name in models.OBJECTIVES}  # in the order of their numbers


PAIRS = [
    *itertools.product(POSTERIOR_ESTIMATORS, ("naive", "gdregs")),
    ("dregs", "gdregs-mix"),
    (gdregs.interpolated_dregs(0.3), PriorEstimator(0.3)),
    (PosteriorMix(0.3), "gdregs"),
    ("dregs", gdregs.mixed_gdregs({"a": 0.3, "b": 0, "c": 1})),
    ("naive", gdregs.mixed_gdregs({"a": 1, "b": 0.4, "c": 0})),
    ("stl", gdregs.mixed_gdregs({"a": 0, "b": 0, "c": 0})),
]
PRIORS = {"naive": 0.0, "gdregs": 1.0, "gdregs-mix": 0.5}


def rows_of(pair):
    """The same numbers for any pair, which one program takes."""
    posterior, prior = pair
    if isinstance(posterior, PosteriorMix):
        posterior = PosteriorEstimator(1 - posterior.mix, 1 - posterior.mix, posterior.mix)
    posterior = POSTERIOR_ESTIMATORS[posterior] if isinstance(posterior, str) else posterior
    mix = PRIORS[prior] if isinstance(prior, str) else prior.mix
    return (
        PosteriorEstimator(*map(float, posterior)),
        PriorEstimator(
            {name: float(mix[name] if isinstance(mix, dict) else mix) for name in "abc"}
        ),
    )


def to_torch(tree):
    return jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), tree)


class Layer(torch.nn.Module):
    """A conditional of `reference`."""

    def __init__(self, parameters, names, x=None):
        super().__init__()
        self.values, self.names, self.x = parameters, names, x

    def forward(self, *parents):
        out = self.values["bias"]
        for name, z in zip(self.names, parents, strict=True):
            out = out + torch.tanh(z) @ self.values["weight"][name]
        if self.x is not None:
            out = out + self.x @ self.values["data"]
        loc, raw = out[..., : reference.DIM], out[..., reference.DIM :]
        if self.x is None and not parents:
            loc, raw = loc.expand(BATCH, -1), raw.expand(BATCH, -1)
        scale = 0.3 + torch.nn.functional.softplus(raw)
        return dist.Independent(dist.Normal(loc, scale), 1)


def hierarchy(layers, graph, x=None):
    return gt.Hierarchy(
        {name: (Layer(layers[name], parents, x), parents) for name, parents in graph.items()}
    )


class Walked(gt.Hierarchy):
    """A hierarchy whose samples are given."""

    def __init__(self, hierarchy, z):
        super().__init__(
            {
                name: (hierarchy.conditionals[name], parents)
                for name, parents in hierarchy.parents.items()
            }
        )
        self.z, self.num_drawn = z, 0

    def sample(self, sample_shape=()):
        """The next ones."""
        start, self.num_drawn = self.num_drawn, self.num_drawn + sample_shape[0]
        return {name: value[start : self.num_drawn] for name, value in self.z.items()}


def likelihood(lam, x):
    def evaluate(z):
        loc = sum(torch.sin(z[name] @ lam[name]) for name in reference.LATENTS)
        return dist.Independent(dist.Normal(loc, 0.7), 1).log_prob(x)

    return evaluate


@pytest.mark.slow
@pytest.mark.parametrize("kept", [None, 2])
def test_gradients_are_those_of_jax(float64, kept, monkeypatch):
    """Every objective with every pair, on three layers with skip connections.

    Half of them in blocks of samples, of which the last one is smaller, so that each objective and
    each pair is among both halves.
    """
    *trees, x = reference.init(1, BATCH)
    offset = np.array([0.3, 0.8])
    cases = list(itertools.product(enumerate(OBJECTIVES), enumerate(PAIRS)))
    rows = [(i, *rows_of(pair)) for (i, _), (_, pair) in cases]
    rows = jax.tree.map(lambda *values: np.stack(values), *rows)
    key = jax.random.key(2)

    keep = resampling.keep
    monkeypatch.setattr(resampling, "keep", lambda _, *of: keep(jax.numpy.asarray(offset), *of))
    monkeypatch.setattr(weights, "draw_offset", lambda _: torch.tensor(offset))

    @jax.jit
    def expected(trees, x, rows):
        def of(row):
            def loss(trees):
                return models.total_bound(
                    *trees, x, key=key, num_samples=SIZE, objective=models.AnyOf(row[0]),
                    posterior_estimator=row[1], prior_estimator=row[2], num_gradient_samples=kept,
                )  # fmt: skip

            return jax.value_and_grad(loss)(trees)

        draw = models.posterior(trees[0], x).sample
        z = jax.vmap(lambda key: draw(key, ()))(keys_of_samples(key, 0, SIZE))
        return z, *jax.vmap(of)(rows)

    z, values, gradients = jax.device_get(expected(trees, x, rows))
    x, z = torch.tensor(x), {name: torch.tensor(value) for name, value in z.items()}
    for place, ((i, objective), (j, pair)) in enumerate(cases):
        chunk_size = (None, 3 if kept is None else 1)[(i + j) % 2]
        phi, theta, lam = leaves = to_torch(trees)
        found = gt.bound(
            Walked(hierarchy(phi, reference.POSTERIOR, x), z),
            hierarchy(theta, reference.PRIOR),
            likelihood(lam, x),
            num_samples=SIZE,
            objective=OBJECTIVES[objective],
            posterior_estimator=pair[0],
            prior_estimator=pair[1],
            num_gradient_samples=kept,
            chunk_size=chunk_size,
        ).sum()
        found.backward()
        name = f"{objective}, {pair}, blocks of {chunk_size}"
        np.testing.assert_allclose(found.item(), values[place], rtol=1e-10, err_msg=name)
        for a, b in zip(jax.tree.leaves(leaves), jax.tree.leaves(gradients), strict=True):
            got = 0 if a.grad is None else a.grad.numpy()
            np.testing.assert_allclose(got, b[place], atol=1e-10, rtol=1e-10, err_msg=name)
