"""What a training step of `gdregs.torch.bound` costs, against the same VAE by hand in PyTorch.

The papers' networks, B = 64, K = 64. By hand: the naive gradient of IWAE and DReGs by a hook, each
in eager mode and by `torch.compile`; ours in eager mode, with the backward pass on M = 8 samples
and on all. Rounds alternate between the implementations; ratios are to the fastest one by hand.
Peak memory is what a process of its own adds in five steps, after two (Linux).

    pip install 'gdregs[cli,torch]'
    python benchmarks/torch_step.py [--layers 1 2 3] [--rounds 15] [--out PATH]
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.distributions import Bernoulli, Independent, Normal
from tqdm import tqdm

import gdregs.torch
from gdregs.vae.files import write_json, write_text
from gdregs.vae.runs.provenance import provenance
from gdregs.vae.show.markdown import markdown_table

sys.path.insert(0, str(Path(__file__).parent / "suite"))
import torch_steps

BATCH, SAMPLES, PIXELS = 64, 64, 784
BY_HAND = {
    "naive": (torch_steps.naive, False),
    "naive, compiled": (torch_steps.naive, True),
    "DReG hook": (torch_steps.dreg, False),
    "DReG hook, compiled": (torch_steps.dreg, True),
}


def normal(network, *values):
    loc, scale = torch_steps.gaussian(network, *values)
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def ours(num_gradient_samples):
    """Minus the bound by `gdregs.torch.bound`."""

    def loss(model, x, num_samples):
        top = len(model.posterior) - 1
        posterior, prior = {}, {}
        for layer, network in enumerate(model.posterior):
            below = (f"z{layer - 1}",) if layer else ()
            conditional = normal(network, x) if not layer else _given(network, x)
            posterior[f"z{layer}"] = (conditional, below)
        zeros = torch.zeros(len(x), torch_steps.LATENT)
        prior[f"z{top}"] = (Independent(Normal(zeros, 1.0 + zeros), 1), ())
        for layer, network in enumerate(model.prior):
            prior[f"z{layer}"] = (_given(network), (f"z{layer + 1}",))

        def likelihood(z):
            logits = model.decoder(*(z[f"z{layer}"] for layer in range(top + 1)))
            return Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1)

        return -gdregs.torch.bound(
            gdregs.torch.Hierarchy(posterior), gdregs.torch.Hierarchy(prior), likelihood,
            num_samples=num_samples, num_gradient_samples=num_gradient_samples,
        ).mean()  # fmt: skip

    return loss


def _given(network, *known):
    return lambda z: normal(network, *known, z)


OURS = {"gdregs.torch, M = 8": ours(8), "gdregs.torch, M = K": ours(None)}
ALL = {**BY_HAND, **{name: (loss, False) for name, loss in OURS.items()}}


def make(name, num_layers):
    torch.manual_seed(0)
    model = torch_steps.VAE(PIXELS, num_layers)
    images = np.random.default_rng(0).random((BATCH, PIXELS)) < 0.3
    x = torch.tensor(images, dtype=torch.float32)
    loss, is_compiled = ALL[name]
    if is_compiled:
        loss = torch.compile(loss, dynamic=False)
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)

    def step():
        optimiser.zero_grad()
        loss(model, x, SAMPLES).backward()
        optimiser.step()

    return step


def peak_megabytes(name, num_layers):
    arguments = [sys.executable, __file__, "--measure", name, "--layers", str(num_layers)]
    # What is freed goes back at once, so that steps do not live on what those before them left.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def added_megabytes(step, count=5):
    """How far memory rises above where it stands between steps."""

    def read(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    step()
    step()
    before = read("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(count):
        step()
    return max(read("VmHWM") - before, 0)


def measure(num_layers, rounds):
    steps = {name: make(name, num_layers) for name in ALL}
    times = {name: [] for name in ALL}
    for step in steps.values():
        step()
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begun)
    middle = {name: float(np.median(values)) for name, values in times.items()}
    fastest = min(BY_HAND, key=lambda name: middle[name])
    for name in ALL:
        ratios = np.array(times[name]) / np.array(times[fastest])
        yield {
            "layers": num_layers,
            "step": name,
            "milliseconds": 1e3 * middle[name],
            "to_fastest_by_hand": float(np.median(ratios)),
            "error": float(ratios.std(ddof=1) / rounds**0.5),
            "peak_megabytes": peak_megabytes(name, num_layers),
        }


def page(content):
    rows = [
        [
            str(row["layers"]),
            row["step"],
            f"{row['milliseconds']:.0f} ms",
            f"{row['to_fastest_by_hand']:.2f} ± {row['error']:.2f}",
            f"{row['peak_megabytes']:.0f} MB",
        ]
        for row in content["rows"]
    ]
    header = ["L", "step", "time", "relative to the fastest by hand", "peak memory"]
    return f"""# What a step costs in PyTorch

<!-- table -->
{markdown_table(header, rows)}

B = 64, K = 64, the papers' networks, PyTorch {content["torch"]}; medians of {content["rounds"]}
alternating rounds, with the standard error of the ratio. `{content["command"]}`, {content["date"]},
{content["hardware"]}.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/torch-step"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(added_megabytes(make(options.measure, options.layers[0])))
        return
    rows = []
    for num_layers in tqdm(options.layers, unit="model"):
        rows.extend(measure(num_layers, options.rounds))
    content = {
        **provenance(" ".join(["python", *sys.argv])),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "rows": rows,
    }
    write_json(options.out.with_suffix(".json"), content)
    write_text(options.out.with_suffix(".md"), page(content))
    print(page(content))


if __name__ == "__main__":
    main()
