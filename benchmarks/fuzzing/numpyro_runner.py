"""Runs a program of NumPyro: its rows, those of the evaluator, and its exact properties."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from fuzzing import exact, numpyro_text
from fuzzing.jax_evaluator import combine, has_path, objective_of
from fuzzing.jax_runner import JaxRunner, keys_of


class StopWithoutPath(Messenger):
    """Latents whose sampler is no path are constants."""

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"] and not has_path(msg["fn"]):
            msg["value"] = jax.lax.stop_gradient(msg["value"])


class NumPyroRunner(JaxRunner):
    """A program of NumPyro, set up."""

    text = numpyro_text

    def bound_of(self, module):
        """Minus the program's loss."""
        return lambda p, key: -module["loss"](p, key)

    def evaluator(self):
        """By numpyro's handlers."""
        return self.evaluate

    def properties(self) -> str:
        """The first exact property that does not hold, in words; empty if all hold."""
        program, keys = self.program, keys_of(10**6)
        rows = self.of_ours(keys)
        failed = exact.constant(program, self.names, rows)
        if not failed and (program.chunk_size is not None or not program.vectorized):
            other = self.without_chunks(keys)
            failed = exact.same(rows, other, self.names, program, "in chunks", "whole")
        if failed or program.seed % 3:
            return failed
        return self.gradient_of_map(keys, rows)

    def evaluate(self, p, key):
        """The bound by numpyro's handlers, and what has its naive gradient."""
        program, objective = self.program, objective_of(self.program.objective)
        key, other, plate_key = jax.random.split(key, 3)
        indices = self.indices(p, plate_key)

        def weigh(key):
            return jax.vmap(lambda key: self.weigh(p, key, indices))(
                jax.random.split(key, program.num_samples)
            )

        log_weights, score = weigh(key)
        baseline = None if score is None else objective(weigh(other)[0])
        value, surrogate = combine(objective, log_weights, score, baseline)
        return value * self.scale, surrogate * self.scale

    @property
    def encloses(self) -> bool:
        """Whether each datapoint has weights of its own."""
        return all(one.place != "global" for one in self.program.latents)

    @property
    def scale(self) -> float:
        """What a subsample that has weights of its own is multiplied by."""
        return 2.0 if self.program.subsample and self.encloses else 1.0

    def indices(self, p, key):
        """Datapoints that all particles share."""
        if not self.program.subsample:
            return {}
        guide = handlers.seed(handlers.substitute(self.module["model"], p), key)
        trace = handlers.trace(guide).get_trace(self.module["x"], self.module["y"])
        return {"data": trace["data"]["value"]}

    def weigh(self, p, key, indices):
        """The log-weight of a particle, and the score of what has no path."""
        data = self.module["x"], self.module["y"]
        given = {**p, **indices}
        guide = handlers.substitute(handlers.seed(self.module["guide"], key), given)
        with StopWithoutPath():
            drawn = handlers.trace(guide).get_trace(*data)
        z = {name: drawn[name]["value"] for name in self.program.order}
        model = handlers.substitute(handlers.seed(self.module["model"], key), {**given, **z})
        sites = handlers.trace(model).get_trace(*data)
        log_weight, score = jnp.zeros(()), None
        for sign, trace in ((1, sites), (-1, drawn)):
            for site in trace.values():
                if site["type"] == "sample":
                    log_weight = log_weight + sign * self.reduce(self.log_density(site))
        for name in self.program.order:
            if not has_path(drawn[name]["fn"]):
                term = self.reduce(_unmasked(drawn[name]["fn"]).log_prob(z[name]))
                score = term if score is None else score + term
        return log_weight, score

    def log_density(self, site):
        scale = 1.0 if site["scale"] is None else site["scale"] / self.scale
        return scale * site["fn"].log_prob(site["value"])

    def reduce(self, log_density):
        """The sum over all axes but that of the datapoints, if they have weights of their own."""
        if not self.encloses:
            return jnp.sum(log_density)
        return jnp.sum(log_density, axis=tuple(range(log_density.ndim - 1)))


def _unmasked(distribution):
    """The law that is drawn from."""
    if isinstance(distribution, dist.MaskedDistribution):
        return _unmasked(distribution.base_dist)
    if isinstance(distribution, dist.ExpandedDistribution):
        return _unmasked(distribution.base_dist).expand(distribution.batch_shape)
    return distribution
