r"""A deep Markov model of polyphonic music that is generated here: chords, arpeggios and a tune.

The model is that of Krishnan et al. (Structured Inference Networks for Nonlinear State Space
Models, 2017): a gated transition $p(z_t \mid z_{t-1})$, an emission of independent notes
$p(x_t \mid z_t)$, and a posterior $q(z_t \mid z_{t-1}, x_{t:T})$ that reads the notes to come from
a recurrent network that runs backward once for all importance samples. Pieces differ in length. It
is trained with DReGs and with the naive gradient, from the same start on the same batches, and held
against what notes by themselves, and each note given whether it sounded before, allow.

    pip install 'gdregs[cli]'
    python benchmarks/polyphony.py --out results
"""

import argparse
import functools
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

LENGTH, NOTES, LATENT, HIDDEN = 64, 36, 16, 64
NUM_SAMPLES, KEPT, BATCH = 8, 2, 32
CHORDS = np.array([[0, 4, 7], [5, 9, 12], [7, 11, 14], [9, 12, 16], [2, 5, 9], [4, 7, 11]])
NEXT = np.array(
    [
        [0, 4, 4, 2, 1, 1],
        [4, 0, 5, 0, 2, 0],
        [7, 2, 0, 3, 0, 0],
        [0, 4, 2, 0, 4, 1],
        [0, 0, 8, 1, 0, 1],
        [0, 4, 0, 5, 1, 0],
    ]
)


def compose(count, seed):
    """Pieces `[count, T, notes]` of 0 and 1, and which steps there are, `[count, T]`."""
    draw = np.random.default_rng(seed)
    pieces, mask = np.zeros((count, LENGTH, NOTES), np.float32), np.zeros((count, LENGTH), bool)
    for piece, present in zip(pieces, mask, strict=True):
        length, shift = draw.integers(LENGTH // 2, LENGTH + 1), draw.integers(0, 6)
        present[:length] = True
        chord, tune, is_broken = 0, 24, draw.random() < 0.5
        for step in range(length):
            beat = step % 4
            if beat == 0:
                chord = draw.choice(len(CHORDS), p=NEXT[chord] / NEXT[chord].sum())
            notes = CHORDS[chord] + shift
            piece[step, notes if not is_broken else notes[[beat % 3]]] = 1
            tones = np.sort(np.concatenate([notes + 12, notes + 24]))
            tones = tones[tones < NOTES]
            if beat % 2 == 0 or draw.random() < 0.3:
                near = np.argsort(np.abs(tones - tune))[:3]
                tune = tones[draw.choice(near)]
                piece[step, tune] = 1
    return pieces, mask


class Gate(eqx.Module):
    r"""$p(z_t \mid z_{t-1})$: a gate between a linear and a nonlinear move."""

    gate: eqx.nn.MLP
    move: eqx.nn.MLP
    linear: jax.Array
    scale: jax.Array

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.gate = eqx.nn.MLP(LATENT, LATENT, HIDDEN, 1, key=one)
        self.move = eqx.nn.MLP(LATENT, LATENT, HIDDEN, 1, key=two)
        self.linear, self.scale = jnp.eye(LATENT), jnp.zeros(LATENT)

    def __call__(self, z, _):
        gate, move = jax.nn.sigmoid(over(self.gate, z)), over(self.move, z)
        return normal((1 - gate) * (z @ self.linear) + gate * move, self.scale)


class Combine(eqx.Module):
    r"""$q(z_t \mid z_{t-1}, x_{t:T})$."""

    look: jax.Array
    last: eqx.nn.MLP

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.look = jax.random.normal(one, (LATENT, HIDDEN)) / LATENT**0.5
        self.last = eqx.nn.MLP(HIDDEN, 2 * LATENT, HIDDEN, 1, key=two)

    def __call__(self, z, future):
        future = future.reshape((1,) * (z.ndim - future.ndim) + future.shape)
        loc, raw = jnp.split(over(self.last, (jnp.tanh(z @ self.look) + future) / 2), 2, axis=-1)
        return normal(loc, raw)

    def first(self, future):
        return self(jnp.zeros((*future.shape[:-1], LATENT)), future)


class Model(eqx.Module):
    """All of it."""

    gate: Gate
    emission: eqx.nn.MLP
    combine: Combine
    reader: eqx.nn.GRUCell

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.gate, self.combine = Gate(keys[0]), Combine(keys[1])
        self.emission = eqx.nn.MLP(LATENT, NOTES, HIDDEN, 2, key=keys[2])
        self.reader = eqx.nn.GRUCell(NOTES, HIDDEN, key=keys[3])

    def posterior(self, x, mask):
        """From `[batch, T, notes]` and `[batch, T]`."""

        def read(state, xs):
            notes, present = xs
            new = jax.vmap(self.reader)(notes, state)
            state = jnp.where(present[:, None], new, state)
            return state, state

        x, mask = jnp.moveaxis(x, 1, 0), mask.T
        start = jnp.zeros((x.shape[1], HIDDEN))
        _, future = jax.lax.scan(read, start, (x, mask), reverse=True)
        first = Partial(Combine.first, self.combine)
        return gdregs.Chain(first, self.combine, length=LENGTH, inputs=future, mask=mask)

    def prior(self, mask):
        first = normal(jnp.zeros((len(mask), LATENT)), jnp.full(LATENT, 0.5))
        return gdregs.Chain(first, self.gate, length=LENGTH, mask=mask.T)

    def log_likelihood(self, z, x, mask):
        logits = over(self.emission, z)
        terms = x[None] * logits - jax.nn.softplus(logits)
        return jnp.sum(jnp.where(mask[None, ..., None], terms, 0), axis=(-2, -1))


def over(network, values):
    """A network of vectors, on any leading axes."""
    flat = jax.vmap(network)(values.reshape(-1, values.shape[-1]))
    return flat.reshape(*values.shape[:-1], -1)


def normal(loc, raw):
    raw = jnp.broadcast_to(raw, loc.shape)
    return dist.Normal(loc, jax.nn.softplus(raw) + 1e-3).to_event(1)


def bound(model, x, mask, key, num_samples, **options):
    """Of each piece, in nats."""
    return gdregs.bound(
        model.posterior(x, mask), model.prior(mask),
        lambda z: model.log_likelihood(z, x, mask),
        key=key, num_samples=num_samples, **options,
    )  # fmt: skip


def train(model, x, mask, steps, key, **options):
    """The trained model, the bound in nats a step of music by training step, and seconds a step."""
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    optimiser = optax.chain(
        optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    )

    def step(carry, key):
        arrays, state = carry
        pick, own = jax.random.split(key)
        rows = jax.random.choice(pick, len(x), (BATCH,), replace=False)
        count = jnp.sum(mask[rows])

        def loss(arrays):
            values = bound(
                eqx.combine(arrays, static), x[rows], mask[rows], own, NUM_SAMPLES, **options
            )
            return -jnp.sum(values) / count

        value, gradient = jax.value_and_grad(loss)(arrays)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(arrays, updates), state), -value

    run = jax.jit(functools.partial(jax.lax.scan, step))
    keys = jax.random.split(key, steps)
    begun = (arrays, optimiser.init(arrays))
    compiled = run.lower(begun, keys).compile()
    started = time.perf_counter()
    (arrays, _), values = jax.block_until_ready(compiled(begun, keys))
    seconds = (time.perf_counter() - started) / steps
    return eqx.combine(arrays, static), np.asarray(values), seconds


def evaluate(model, x, mask, num_samples=200):
    """The bound on pieces in nats a step of music, and its standard error over pieces."""
    run = eqx.filter_jit(lambda model, *args: bound(model, *args, num_samples, chunk_size=20))
    keys = jax.random.split(jax.random.key(9), len(x) // BATCH)
    parts = [
        run(model, x[i : i + BATCH], mask[i : i + BATCH], key)
        for i, key in zip(range(0, len(x), BATCH), keys, strict=True)
    ]
    values, counts = np.concatenate(parts), np.asarray(mask.sum(axis=1))
    share = values / counts.mean()
    return float(values.sum() / counts.sum()), float(np.std(share) / len(share) ** 0.5)


def baselines(train_set, test_set):
    """What notes by themselves, and given whether each sounded before, reach on the test set."""

    def log_prob(p, x):
        return np.where(x > 0, np.log(p), np.log1p(-p))

    (x, mask), (test, test_mask) = train_set, test_set
    single = (x[mask].sum(axis=0) + 1) / (mask.sum() + 2)
    both = mask[:, 1:]
    given = np.stack(
        [
            (np.where(x[:, :-1] == state, x[:, 1:], 0)[both].sum(axis=0) + 1)
            / ((x[:, :-1] == state)[both].sum(axis=0) + 2)
            for state in (0, 1)
        ]
    )
    alone = log_prob(single, test)
    before = np.where(test[:, :-1] > 0, log_prob(given[1], test[:, 1:]), 0) + np.where(
        test[:, :-1] == 0, log_prob(given[0], test[:, 1:]), 0
    )
    before = np.concatenate([alone[:, :1], before], axis=1)
    return {
        name: float(terms[test_mask].sum() / test_mask.sum())
        for name, terms in (("notes_alone", alone), ("notes_given_themselves_before", before))
    }


def dream(model, key):
    """A piece from the prior: probabilities and notes, `[T, notes]`."""
    one, two = jax.random.split(key)
    z = model.prior(jnp.ones((1, LENGTH), bool)).sample(one, (1,))
    logits = over(model.emission, z)[0, 0]
    return jax.nn.sigmoid(logits), dist.Bernoulli(logits=logits).sample(two)


def draw(x, dreamed, curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    rolls = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    axes = rolls[0].subplots(2, 1, sharex=True)
    for axis, roll, title in zip(
        axes, (x, dreamed[1]), ("a piece", "drawn by the model"), strict=True
    ):
        axis.imshow(np.asarray(roll).T, origin="lower", aspect="auto", cmap="Greys", vmin=0, vmax=1)
        axis.set(title=title, ylabel="note")
    axes[1].set(xlabel="step")
    axis = rolls[1].subplots()
    for name, values in curves.items():
        smooth = np.convolve(values, np.ones(25) / 25, mode="valid")
        axis.plot(np.arange(len(smooth)) + 25, smooth, label=name, linewidth=1)
    top = max(values[-25:].mean() for values in curves.values())
    axis.set(
        xlabel="training step", ylabel="bound, nats a step of music", ylim=(top - 4, top + 0.5)
    )
    axis.legend(fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data, held = compose(512, seed=0), compose(128, seed=1)
    x, mask = jnp.asarray(data[0]), jnp.asarray(data[1])
    test, test_mask = jnp.asarray(held[0]), jnp.asarray(held[1])
    rivals = {
        "DReGs, backward pass on 2 of 8": {
            "posterior_estimator": "dregs", "prior_estimator": "naive",
            "num_gradient_samples": KEPT,
        },
        "naive": {"posterior_estimator": "naive", "prior_estimator": "naive"},
    }  # fmt: skip
    results, curves, dreamed = {}, {}, None
    for name, estimators in rivals.items():
        rows = []
        for seed in range(options.seeds):
            model, values, seconds = train(
                Model(jax.random.key(seed)), x, mask, options.steps, jax.random.key(100 + seed),
                **estimators,
            )  # fmt: skip
            value, error = evaluate(model, test, test_mask)
            rows.append({"test_bound": value, "error": error, "seconds_a_step": round(seconds, 4)})
            print(name, rows[-1], flush=True)
            curves.setdefault(name, values)
            if dreamed is None:
                dreamed = jax.device_get(dream(model, jax.random.key(7)))
        results[name] = rows
    pairs = zip(*results.values(), strict=True)
    differences = np.array([one["test_bound"] - other["test_bound"] for one, other in pairs])
    content = {
        **provenance("python benchmarks/polyphony.py"),
        "steps": options.steps,
        "pieces": {"train": len(x), "test": len(test), "longest": LENGTH, "notes": NOTES},
        "nats_a_step_of_music_K200": {
            **baselines(data, held),
            **{
                name: float(np.mean([r["test_bound"] for r in rows]))
                for name, rows in results.items()
            },
        },
        "dregs_minus_naive": {
            "value": float(differences.mean()),
            "error_over_seeds": float(differences.std(ddof=1) / len(differences) ** 0.5)
            if len(differences) > 1
            else None,
        },
        "runs": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "polyphony.json", content)
    draw(held[0][1], dreamed, curves, options.out / "polyphony.png")
    print(content)


if __name__ == "__main__":
    main()
