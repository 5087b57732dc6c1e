"""Public estimators held against `gdregs.check_unbiased`, on one small model.

    pip install -r benchmarks/peers/requirements.txt
    python benchmarks/peers/run.py [--draws 20000] [--out results/peers.json]

Each estimator's gradient is compared, by phi and by theta, with the naive one of the same bound. A
library that is not installed, or fails, is listed as such.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1]))

import jax_peers
import problem
import torch_peers

import gdregs
from gdregs.vae.show.markdown import markdown_table
from report import save

PHI, THETA = 0, 1


def ours(posterior_estimator, prior_estimator, **options):
    """An estimator of this library."""

    def draw(key):
        def bound(phi, theta):
            return problem.bound(
                phi,
                theta,
                key,
                num_samples=options.get("num_samples", problem.NUM_SAMPLES),
                posterior_estimator=posterior_estimator,
                prior_estimator=prior_estimator,
            )

        return jax.grad(bound, argnums=(0, 1))(*problem.parameters())

    return draw


K = problem.NUM_SAMPLES
PEERS = {
    "gdregs dregs + gdregs": (K, lambda: ours("dregs", "gdregs")),
    "gdregs stl + naive (biased, to be caught)": (K, lambda: ours("stl", "naive")),
    "tfp-nightly DOUBLY_REPARAMETERIZED": (K, jax_peers.tfp_doubly_reparameterized),
    "normflows reverse_alpha_div(dreg=True)": (K, torch_peers.normflows_dreg),
    "flowjax ElboLoss(stick_the_landing=True), K = 1": (1, jax_peers.flowjax_stl),
    "numpyro RenyiELBO(alpha=0)": (K, jax_peers.numpyro_renyi),
    "pyro RenyiELBO(alpha=0)": (K, torch_peers.pyro_renyi),
    "multivae MMVAE.dreg_looser": (K, torch_peers.multivae_dreg),
    "PyTorch, hook on z, by hand": (K, torch_peers.torch_hook),
}


def measure(draw, num_samples, num_draws):
    """For phi and theta: unbiased or not, and mean and variance relative to the naive one's."""
    reference = ours("naive", "naive", num_samples=num_samples)
    key, other_key = jax.random.split(jax.random.key(0))
    moments, naive = (gdregs.gradient_moments(f, other_key, num_draws) for f in (draw, reference))
    results = {}
    for name, part in (("phi", PHI), ("theta", THETA)):
        check = gdregs.check_unbiased(*_parts(part, draw, reference), key, num_draws)
        mean, naive_mean = _flat(moments.mean[part]), _flat(naive.mean[part])
        variance, naive_variance = _flat(moments.variance[part]), _flat(naive.variance[part])
        results[name] = {
            "unbiased": bool(check.unbiased),
            "largest_z": float(check.largest),
            "threshold": check.threshold,
            "mean_ratio": float(mean @ naive_mean / (naive_mean @ naive_mean)),
            "variance_ratio": float(np.sum(variance) / np.sum(naive_variance)),
        }
    return results


def _parts(part, *functions):
    return [lambda key, f=f: f(key)[part] for f in functions]


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--out", default="results/peers.json")
    options = parser.parse_args()
    results = {}
    for name, (num_samples, build) in tqdm(PEERS.items(), unit="peer"):
        try:
            results[name] = measure(build(), num_samples, options.draws)
        except Exception as error:  # a peer that does not work is a result
            results[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    table = describe(results)
    print(table)
    out = Path(options.out)
    pinned = Path(__file__).with_name("requirements.txt").read_text().splitlines()[1:]
    content = {"draws": options.draws, "num_samples": K, "peers": pinned, "results": results}
    save(out, content)
    introduction = (
        f"# Public estimators held against `check_unbiased`\n\n`{' '.join(['python', *sys.argv])}`:"
        f" {options.draws:,} draws, K = {K} where nothing else is said. The mean and the variance"
        f" are relative to the naive gradient's of the same bound; z is the largest difference of"
        f" the means in standard errors.\n\n"
    )
    out.with_suffix(".md").write_text(introduction + table + "\n")


def describe(results):
    """The results as a Markdown table."""
    rows = []
    for name, result in results.items():
        if "failed" in result:
            rows.append([name, result["failed"], "", "", "", "", ""])
            continue
        cells = [name]
        for part in ("phi", "theta"):
            found = result[part]
            verdict = "unbiased" if found["unbiased"] else "**biased**"
            cells.append(f"{verdict}, z {found['largest_z']:.1f}")
            cells += [f"{found['mean_ratio']:.2f}", f"{found['variance_ratio']:.2f}"]
        rows.append(cells)
    header = ["estimator", "φ", "mean", "variance", "θ", "mean", "variance"]
    return markdown_table(header, rows)


if __name__ == "__main__":
    main()
