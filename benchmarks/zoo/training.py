"""Each objective's SVI of a model of the zoo, all from the same start, and a loop that trains."""

import jax
import optax
from numpyro import infer

import gdregs.numpyro

SAMPLES = 8


def objectives(name):
    """Ours, and numpyro's that take the model."""
    if name == "enumerated":  # RenyiELBO does not sum out
        return {"Trace_ELBO": infer.TraceEnum_ELBO(SAMPLES, max_plate_nesting=1)}
    return {
        "RenyiELBO": infer.RenyiELBO(alpha=0, num_particles=SAMPLES),
        "Trace_ELBO": infer.Trace_ELBO(SAMPLES),
    }


def make_svis(name, entry):
    optimiser = optax.adam(entry.learning_rate)
    bound = gdregs.numpyro.Bound(SAMPLES)
    svis = {
        "ours": gdregs.numpyro.SVI(entry.model, entry.guide, optimiser, bound),
        "naive": infer.SVI(entry.model, entry.guide, optimiser, bound),
        **{
            label: infer.SVI(entry.model, entry.guide, optimiser, loss)
            for label, loss in objectives(name).items()
        },
    }
    states = {label: svi.init(jax.random.key(0), *entry.args) for label, svi in svis.items()}
    return svis, states


def trainer(svi, args, num_steps):
    @jax.jit
    def train(state):
        def step(state, _):
            state, loss = svi.update(state, *args)
            return state, loss

        return jax.lax.scan(step, state, None, length=num_steps)

    return train
