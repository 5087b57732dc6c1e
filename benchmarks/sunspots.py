r"""A nonlinear state-space model of a real series: 309 years of sunspots, and a forecast.

A latent in the plane turns by an angle and shrinks, $z_t = r R(\omega) z_{t-1} + s\epsilon_t$; the
number of sunspots is a softplus of its first coordinate, with noise that grows with it. The
posterior is a `gdregs.Chain` that runs backward and reads the years around; all parameters of the
prior are learned. The last 33 years (three cycles) are held out and forecast from samples of the
filtered state.

    pip install 'gdregs[cli]' statsmodels
    python benchmarks/sunspots.py --out results
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jax.tree_util import Partial

import gdregs
from gdregs.vae.files import write_atomically, write_json
from gdregs.vae.runs.provenance import provenance

HELD_OUT = 33
WINDOW = 6


class Prior(eqx.Module):
    """The turning, shrinking latent, and what is seen of it."""

    angle: jax.Array
    raw_shrink: jax.Array
    log_scale: jax.Array
    level: jax.Array
    slope: jax.Array
    log_noise: jax.Array

    def __init__(self):
        self.angle = jnp.array(2 * jnp.pi / 10)
        self.raw_shrink = jnp.array(3.0)
        self.log_scale = jnp.log(jnp.array([0.3, 0.3]))
        self.level, self.slope = jnp.array(0.5), jnp.array(1.0)
        self.log_noise = jnp.array([-1.5, -1.5])

    def move(self, z, _=None):
        """p(z_t | z_{t-1})."""
        cosine, sine = jnp.cos(self.angle), jnp.sin(self.angle)
        turned = jnp.stack(
            [cosine * z[..., 0] - sine * z[..., 1], sine * z[..., 0] + cosine * z[..., 1]], -1
        )
        loc = jax.nn.sigmoid(self.raw_shrink) * turned
        return dist.Normal(
            loc, jnp.exp(self.log_scale).reshape((1,) * (loc.ndim - 1) + (2,))
        ).to_event(1)

    def see(self, z):
        """p(x_t | z_t), in units of 50 sunspots."""
        mean = jax.nn.softplus(self.level + self.slope * z[..., 0])
        return dist.Normal(mean, jnp.exp(self.log_noise[0]) + jnp.exp(self.log_noise[1]) * mean)


class Posterior(eqx.Module):
    """q(z_t | z_{t+1}, the years around t)."""

    reader: eqx.nn.MLP
    carry: jax.Array
    log_scale: jax.Array

    def __init__(self, key):
        self.reader = eqx.nn.MLP(2 * WINDOW + 1, 6, 32, 2, activation=jnp.tanh, key=key)
        self.carry = 0.5 * jnp.eye(2)
        self.log_scale = jnp.array([-1.0, -1.0])

    def features(self, x):
        """What the series around each year says, `[T, 1, 6]`."""
        padded = jnp.pad(x, WINDOW, mode="edge")
        windows = jnp.stack([padded[i : i + len(x)] for i in range(2 * WINDOW + 1)], axis=-1)
        return jax.vmap(self.reader)(windows)[:, None]

    def last(self, u):
        return self._normal(u[..., :2], u)

    def before(self, later, u):
        u = jnp.broadcast_to(u, (*later.shape[:-1], 6))
        gate = jax.nn.sigmoid(u[..., 4:])
        return self._normal(gate * (later @ self.carry) + u[..., :2], u)

    def _normal(self, loc, u):
        scale = jax.nn.softplus(u[..., 2:4] - 1.0) + 1e-3
        return dist.Normal(loc, scale).to_event(1)


def chains(model, x):
    """Posterior and prior of the latents of a series."""
    prior, posterior = model
    u = posterior.features(x)
    q = gdregs.Chain(
        Partial(Posterior.last, posterior), Partial(Posterior.before, posterior),
        length=len(x), inputs=u, reverse=True,
    )  # fmt: skip
    first = dist.Normal(jnp.zeros((1, 2)), 1.5).to_event(1)
    return q, gdregs.Chain(first, Partial(Prior.move, prior), length=len(x))


def bound(model, x, key, num_samples, **options):
    """The bound of the series, in nats."""
    q, p = chains(model, x)

    def likelihood(z):  # [K, 1, T, 2]
        return jnp.sum(model[0].see(z).log_prob(x[None, None]), axis=-1)

    return gdregs.bound(q, p, likelihood, key=key, num_samples=num_samples, **options)[0]


def train(x, steps, key, **options):
    model = Prior(), Posterior(jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_array)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    @jax.jit
    def run(arrays, keys):
        def step(carry, key):
            arrays, state = carry
            value, gradient = jax.value_and_grad(
                lambda arrays: -bound(eqx.combine(arrays, static), x, key, 16, **options)
            )(arrays)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(arrays, updates), state), -value

        return jax.lax.scan(step, (arrays, optimiser.init(arrays)), keys)

    (arrays, _), values = run(arrays, jax.random.split(key, steps))
    return eqx.combine(arrays, static), np.asarray(values)


def forecast(model, x, key, horizon, count=2000):
    """Samples of the years after x: latents by importance, then forward in time, `[count, h]`."""
    q, p = chains(model, x)
    keys = jax.random.split(key, 4)

    @jax.jit
    def run():
        z = q.sample(keys[0], (4096,))
        log_weight = jnp.sum(model[0].see(z).log_prob(x[None, None]), axis=-1)
        log_weight = (log_weight + p.log_prob(z) - q.log_prob(z))[:, 0]
        chosen = jax.random.categorical(keys[1], log_weight, shape=(count,))
        now = z[chosen, 0, -1]

        def step(z, key):
            one, two = jax.random.split(key)
            z = model[0].move(z).sample(one)
            return z, model[0].see(z).sample(two)

        _, seen = jax.lax.scan(step, now, jax.random.split(keys[2], horizon))
        weights = jax.nn.softmax(log_weight)
        return seen.T, 1 / jnp.sum(weights**2), z[chosen[:200], 0]

    return jax.device_get(run())


def train_with_numpyro(x, steps):
    """The same model and posterior as NumPyro programs with `scan`, forward and backward."""
    import numpyro
    from numpyro.contrib.control_flow import scan

    def model(x):
        prior = eqx.combine(numpyro.param("prior", arrays), static)

        def step(z, x):
            z = numpyro.sample("z", prior.move(z))
            numpyro.sample("x", prior.see(z), obs=x)
            return z, None

        first = numpyro.sample("first", dist.Normal(jnp.zeros(2), 1.5).to_event(1))
        numpyro.sample("x1", prior.see(first), obs=x[0])
        scan(step, first, x[1:])

    def guide(x):
        posterior = eqx.combine(numpyro.param("posterior", own_arrays), own_static)
        u = posterior.features(x)[:, 0]

        def step(later, u):
            z = numpyro.sample("z", posterior.before(later, u))
            return z, None

        second, _ = scan(step, jnp.zeros(2), u[1:], reverse=True)
        numpyro.sample("first", posterior.before(second, u[0]))

    arrays, static = eqx.partition(Prior(), eqx.is_array)
    own_arrays, own_static = eqx.partition(Posterior(jax.random.key(0)), eqx.is_array)
    loss = gdregs.numpyro.Bound(num_particles=16)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    svi = gdregs.numpyro.SVI(model, guide, optimiser, loss)
    result = svi.run(jax.random.key(4), steps, x, progress_bar=False)
    prior = eqx.combine(result.params["prior"], static)
    return float(2 * np.pi / prior.angle), -float(np.mean(result.losses[-100:]))


def draw(years, x, known, seen, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(years, 50 * x, color="black", linewidth=0.9, label="sunspots")
    ahead = years[known:]
    for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.35)):
        bands = np.percentile(50 * seen, [low, high], axis=0)
        axes.fill_between(ahead, *bands, alpha=alpha, color="#0072B2", label=f"{high - low}%")
    axes.plot(ahead, 50 * np.median(seen, axis=0), color="#0072B2", label="forecast")
    axes.set(
        xlabel="year", ylabel="sunspots", xlim=(years[known] - 100, years[-1]), ylim=(-10, 260)
    )
    axes.legend(ncols=4, fontsize=8, loc="upper left")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    import statsmodels.api as sm

    data = sm.datasets.sunspots.load_pandas().data
    years, x = data["YEAR"].to_numpy(), jnp.asarray(data["SUNACTIVITY"].to_numpy() / 50, float)
    known = len(x) - HELD_OUT
    begun = time.perf_counter()
    estimators = {"posterior_estimator": "dregs", "prior_estimator": "naive"}
    model, values = train(
        x[:known], options.steps, jax.random.key(1), num_gradient_samples=4, **estimators
    )
    seconds = time.perf_counter() - begun
    final = [
        float(jax.jit(lambda key: bound(model, x[:known], key, 1000))(key))
        for key in jax.random.split(jax.random.key(2), 10)
    ]
    period, mean_field = train_with_numpyro(x[:known], options.steps)
    seen, size, _ = forecast(model, x[:known], jax.random.key(3), HELD_OUT)
    held = np.asarray(x[known:])
    inside = {
        f"{high - low}%": float(
            np.mean((held >= np.percentile(seen, low, 0)) & (held <= np.percentile(seen, high, 0)))
        )
        for low, high in ((5, 95), (25, 75))
    }
    prior = model[0]
    content = {
        **provenance("python benchmarks/sunspots.py"),
        "steps": options.steps,
        "seconds": round(seconds, 1),
        "bound_K1000": {
            "value": float(np.mean(final)), "error": float(np.std(final) / len(final) ** 0.5),
        },
        "first_bound": float(values[:10].mean()),
        "numpyro": {"period_years": period, "bound_K16_of_last_100_steps": mean_field},
        "period_years": float(2 * np.pi / prior.angle),
        "shrinks_by": float(jax.nn.sigmoid(prior.raw_shrink)),
        "effective_sample_size_of_4096": float(size),
        "held_out_years_inside": inside,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "sunspots.json", content)
    draw(years, np.asarray(x), known, seen, options.out / "sunspots.png")
    print(content)


if __name__ == "__main__":
    main()
