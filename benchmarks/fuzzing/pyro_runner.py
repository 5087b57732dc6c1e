"""Runs a program of Pyro: its rows, those of the evaluator, and its exact properties.

A plate around the program makes many draws in one run, with a copy of each parameter for each.
"""

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from fuzzing import exact, pyro_text
from fuzzing.execution import run_text
from fuzzing.program import Program
from fuzzing.torch_evaluator import combine, has_path, objective_of
from fuzzing.torch_runner import copies_of, names_of

BLOCK = 250
DRAWS, PARTICLES = -3, -4
"""Where their plates are; the program's own are at -1 and -2."""


class StopWithoutPath(Messenger):
    """Latents whose sampler is no path are constants."""

    def _pyro_post_sample(self, msg):
        if not msg["is_observed"] and msg["value"] is not None and not has_path(msg["fn"]):
            msg["value"] = msg["value"].detach()


class PyroRunner:
    """A program of Pyro, set up."""

    blocks, by_block = 64, True

    def __init__(self, program: Program):
        self.program = program
        torch.set_default_dtype(getattr(torch, program.dtype))
        self.module = run_text(pyro_text.render(program), keeps_imports=True)
        self.starts = dict(self.module["parameters"])
        self.names = names_of(self.starts)
        self.rounding = torch.finfo(getattr(torch, program.dtype)).eps * 256
        self.model, self.guide = (_in_plate(self.module[name]) for name in ("model", "guide"))
        if not program.vectorized:
            self.blocks = 24

    def ours(self, seed: int) -> np.ndarray:
        """A block of rows of gdregs."""
        self.set_up(seed)
        data = self.module["x"], self.module["y"]
        value = -self.module["bound"].differentiable_loss(self.model, self.guide, *data)
        return self.rows(value, value)

    def peer(self, seed: int) -> np.ndarray:
        """A block of rows of the evaluator."""
        self.set_up(seed)
        return self.rows(*self.evaluate())

    def properties(self) -> str:
        """The first exact property that does not hold, in words; empty if all hold."""
        return exact.constant(self.program, self.names, self.ours(10**6))

    def set_up(self, seed: int) -> None:
        """Parameters of a block, and its random numbers."""
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        self.module["parameters"].update(copies_of(self.starts, BLOCK, 2))

    def rows(self, value, total) -> np.ndarray:
        """The gradient of each draw; draws that share a subsample are one."""
        columns = []
        for name in sorted(self.starts):
            leaves = {id(one): one for one in self.leaves(name)}.values()
            found = torch.autograd.grad(total, list(leaves), retain_graph=True, allow_unused=True)
            known = [one for one in found if one is not None]
            gradient = (
                torch.stack(known).sum(0)
                if known
                else torch.zeros_like(self.module["parameters"][name])
            )
            columns.append(gradient.reshape(BLOCK, -1))
        columns.append((value / BLOCK).expand(BLOCK, 1))
        rows = torch.cat(columns, 1).detach().double().numpy()
        return rows.mean(0, keepdims=True) if self.program.subsample else rows

    def leaves(self, name: str):
        """The tensor of a parameter, and that of Pyro's store, which may be the same."""
        yield self.module["parameters"][name]
        if name in pyro.get_param_store():
            yield pyro.param(name).unconstrained()

    @property
    def encloses(self) -> bool:
        """Whether each datapoint has weights of its own."""
        return all(one.place != "global" for one in self.program.latents)

    def evaluate(self):
        """The sum of the bounds of all draws by Pyro alone, and what has its naive gradient."""
        objective = objective_of(self.program.objective)
        log_weights, score = self.weigh({})
        baseline = None
        if score is not None:
            with torch.no_grad():
                baseline = objective(self.weigh({})[0])
        value, total = combine(objective, log_weights, score, baseline)
        return value.sum() * self.scale, total.sum() * self.scale

    @property
    def scale(self) -> float:
        """What a subsample that has weights of its own is multiplied by."""
        return 2.0 if self.program.subsample and self.encloses else 1.0

    def weigh(self, given):
        """Log-weights `[K, draws]` or `[K, draws, datapoints]`, and the score without paths."""
        data = self.module["x"], self.module["y"]
        with pyro.plate("particles", self.program.num_samples, dim=PARTICLES):
            with StopWithoutPath():
                drawn = poutine.trace(self.guide).get_trace(*data)
            model = poutine.replay(self.model, trace=drawn)
            sites = poutine.trace(model).get_trace(*data)
        log_weights, score = 0.0, None
        for sign, trace in ((1, sites), (-1, drawn)):
            trace.compute_log_prob()
            for site in trace.nodes.values():
                if site["type"] == "sample" and "log_prob" in site and site["name"] != "data":
                    log_weights = log_weights + sign * self.reduce(site["log_prob"]) / self.scale
        for name in self.program.order:
            fn = drawn.nodes[name]["fn"]
            while type(fn).__name__ == "MaskedDistribution":
                fn = fn.base_dist
            if not has_path(fn):
                term = self.reduce(fn.log_prob(drawn.nodes[name]["value"]))
                score = term if score is None else score + term
        return log_weights, score

    def reduce(self, log_prob):
        """The sum over all axes but those of particles and draws, and of separate datapoints."""
        log_prob = log_prob.reshape((1,) * (4 - log_prob.ndim) + tuple(log_prob.shape))
        return log_prob.sum(-2) if self.encloses else log_prob.sum((-2, -1))


def _in_plate(program):
    def many(x, y):
        with pyro.plate("draws", BLOCK, dim=DRAWS):
            program(x, y)

    return many
