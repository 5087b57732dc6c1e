"""The estimators once more, written straight from the papers' surrogate losses.

Nothing here uses gdregs: the model is a dict of matrices, the densities are spelled out, and each
parameter group has a loss of its own, (E.2), (E.4) and the naive one, generalised from IWAE to any
objective by its v and c, which come from automatic differentiation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

DIM = 2
LATENTS = ("a", "b", "c")
# Three layers with a skip connection on either side, factorised differently.
POSTERIOR = {"a": (), "b": ("a",), "c": ("a", "b")}
PRIOR = {"c": (), "b": ("c",), "a": ("b", "c")}

stop = jax.lax.stop_gradient


def broadcasting(function):
    """Let a formula below broadcast ranks, which the tests forbid to gdregs."""

    @functools.wraps(function)
    def wrapped(*args):
        with jax.numpy_rank_promotion("allow"):
            return function(*args)

    return wrapped


def init(seed, batch=3, latents=LATENTS):
    """Random parameters of the posterior (phi), prior (theta) and likelihood (lam), and data.

    They are numpy's, of JAX's present precision: to make them takes no program. The seed may be a
    key of JAX. Fewer latents make a model of fewer layers.
    """
    if isinstance(seed, jax.Array):
        seed = np.asarray(jax.random.key_data(seed))[-1]
    rng, dtype = np.random.default_rng(seed), jax.dtypes.canonicalize_dtype(float)

    def normal(scale, *shape):
        return (scale * rng.normal(size=shape)).astype(dtype)

    def layers(graph):
        return {
            name: {
                "weight": {parent: normal(0.6, DIM, 2 * DIM) for parent in parents},
                "bias": normal(0.4, 2 * DIM),
            }
            for name, parents in among(latents, graph).items()
        }

    phi, theta = layers(POSTERIOR), layers(PRIOR)
    for layer in phi.values():
        layer["data"] = normal(0.5, DIM, 2 * DIM)
    lam = {name: normal(1.0, DIM, DIM) for name in latents}
    return phi, theta, lam, normal(1.0, batch, DIM)


def among(latents, graph):
    """The graph of these latents alone."""
    return {
        name: tuple(parent for parent in parents if parent in latents)
        for name, parents in graph.items()
        if name in latents
    }


@broadcasting
def loc_and_scale(layer, parents, x=None):
    out = layer["bias"] + sum(jnp.tanh(z) @ layer["weight"][name] for name, z in parents.items())
    if x is not None:
        out = out + x @ layer["data"]
    loc, raw = out[..., :DIM], out[..., DIM:]
    return loc, 0.3 + jax.nn.softplus(raw)


@broadcasting
def normal_density(z, loc, scale):
    return jnp.sum(-0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi), -1)


def density(layers, graph, z, x=None):
    total = 0.0
    for name, parents in among(layers, graph).items():
        loc, scale = loc_and_scale(layers[name], {p: z[p] for p in parents}, x)
        total = total + normal_density(z[name], loc, scale)
    return total


@broadcasting
def likelihood(lam, z, x):
    loc = sum(jnp.sin(z[name] @ lam[name]) for name in lam)
    return normal_density(x, loc, jnp.asarray(0.7))


@broadcasting
def path(layers, graph, z, x=None):
    """z again, with the derivative of the sampling path: fixed noise, live everything else."""
    live = {}
    for name, parents in among(layers, graph).items():
        loc, scale = loc_and_scale(layers[name], {p: live[p] for p in parents}, x)
        noise = stop((z[name] - loc) / scale)
        live[name] = loc + scale * noise
    return live


def log_weight(phi, theta, lam, z, x):
    return likelihood(lam, z, x) + density(theta, PRIOR, z) - density(phi, POSTERIOR, z, x)


@broadcasting
def iwae(log_weights):
    return jax.nn.logsumexp(log_weights, axis=0) - np.log(len(log_weights))


def vr_iwae(alpha):
    return lambda log_weights: iwae((1 - alpha) * log_weights) / (1 - alpha)


@broadcasting
def jvi(log_weights):
    num = len(log_weights)
    left_out = [jnp.delete(log_weights, j, axis=0) for j in range(num)]
    return num * iwae(log_weights) - (num - 1) / num * sum(map(iwae, left_out))


OBJECTIVES = {
    "elbo": lambda log_weights: jnp.mean(log_weights, axis=0),
    "iwae": iwae,
    "vr-iwae 0.3": vr_iwae(0.3),
    "vr-iwae 2": vr_iwae(2.0),
    "jvi": jvi,
    "own": lambda log_weights: jnp.mean(jnp.tanh(log_weights / 9), 0) + iwae(log_weights / 2) ** 2,
}


def coefficients(objective, log_weights):
    """v and c of one datapoint's log-weights, [K]."""
    v = jax.grad(objective)(log_weights)
    return v, v - jnp.diagonal(jax.hessian(objective)(log_weights))


@broadcasting
def gradients(phi, theta, lam, x, z, v, c):
    """Every estimator's gradient, summed over the batch, by name: of phi, of theta, and of lam.

    v and c are the objective's, [K, batch].
    """
    down_the_path = {
        "stl": v,
        "dregs": c,  # (E.2)
        "rws-dregs": v - c,
        "interpolated 0.3": 0.3 * v + (1 - 0.6) * c,
    }
    by_phi = _by_name(
        lambda weight: jax.grad(path_loss)(phi, theta, lam, x, z, weight), down_the_path
    )
    by_phi["naive"] = jax.grad(naive_loss)(phi, theta, lam, x, z, v)
    by_phi["rws"] = jax.grad(wake_loss)(phi, x, z, v)
    by_theta = _by_name(
        lambda alpha: jax.grad(prior_loss)(theta, phi, lam, x, z, v, c, alpha),
        {"naive": 0.0, "gdregs": 1.0, "gdregs-mix": 0.5, "mixed 0.3": 0.3},
    )
    return by_phi, by_theta, jax.grad(lambda lam: jnp.sum(v * likelihood(lam, z, x)))(lam)


def _by_name(function, arguments):
    """The function of each argument, in one piece of program."""
    results = jax.vmap(function)(jnp.stack([jnp.asarray(of) for of in arguments.values()]))
    return {
        name: jax.tree.map(lambda leaf, i=i: leaf[i], results) for i, name in enumerate(arguments)
    }


def naive_loss(phi, theta, lam, x, z, v):
    """The objective itself to first order, everything live."""
    return jnp.sum(v * log_weight(phi, theta, lam, path(phi, POSTERIOR, z, x), x))


def path_loss(phi, theta, lam, x, z, weight):
    z_q = path(phi, POSTERIOR, z, x)
    return jnp.sum(weight * log_weight(stop(phi), theta, lam, z_q, x))


def wake_loss(phi, x, z, v):
    """The wake-phase update: ascend sum v log q(z), z constant."""
    return jnp.sum(v * density(phi, POSTERIOR, z, x))


def prior_loss(theta, phi, lam, x, z, v, c, alpha):
    naive = jnp.sum(v * density(theta, PRIOR, z))
    z_p = path(theta, PRIOR, z)
    gdregs = jnp.sum(  # (E.4)
        v * likelihood(lam, z_p, x) - c * log_weight(phi, stop(theta), lam, z_p, x)
    )
    return (1 - alpha) * naive + alpha * gdregs
