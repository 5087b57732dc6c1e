"""Twenty-seven one-line faults, put into the source one at a time: which test catches which?

    python benchmarks/mutants.py                  # all, into results/mutants.json and mutants.md
    python benchmarks/mutants.py --only fork,jvi  # some
    python benchmarks/mutants.py --first          # only the tests where each was caught before

Each fault is put into a copy of `src/gdregs`. The test files named with it run first, then the fast
suite, then the slow one, until a test fails; its name is the answer. Faults of PyTorch and Pyro run
their own tests, which are a stage of their own.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FAST, SLOW = "not slow and not nightly", "slow"


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        name: In a word or two.
        file: Below `src/gdregs`.
        old: What stands there, once.
        new: What is put in its place.
        where: The test files that should catch it.
    """

    name: str
    file: str
    old: str
    new: str
    where: str


MUTANTS = (
    # A sign, a share, a density that should be stopped.
    Mutant("sign of RWS", "shared/tables.py",
           '"rws": PosteriorEstimator(density=-1', '"rws": PosteriorEstimator(density=1',
           "tests/test_against_surrogate_losses.py"),
    Mutant("STL for DReGs", "shared/tables.py",
           '"dregs": PosteriorEstimator(density=0, constant=0, slope=1)',
           '"dregs": PosteriorEstimator(density=0, constant=1, slope=0)',
           "tests/test_against_surrogate_losses.py"),
    Mutant("share of the likelihood", "shared/tables.py",
           "return 1 - r\n", "return 1 + r\n", "tests/test_against_surrogate_losses.py"),
    Mutant("share of the rest", "shared/tables.py",
           "return -r\n", "return r\n", "tests/test_against_surrogate_losses.py"),
    Mutant("prior is not stopped", "evaluation/pull.py",
           'gated_density(model.prior, prior_row.density, "prior", log_prob)',
           'gated_density(model.prior, 1, "prior", log_prob)',
           "tests/test_against_surrogate_losses.py"),
    Mutant("parameters are not stopped", "evaluation/gates.py",
           "            return jax.lax.stop_gradient(parameters)", "            return parameters",
           "tests/test_against_surrogate_losses.py"),
    Mutant("parents do not move", "hierarchy.py",
           "reexpress(distribution.conditional(name, parents, path), z[name])",
           "reexpress(distribution.conditional(name, parents, z), z[name])",
           "tests/test_against_surrogate_losses.py"),
    # Derivatives of the objectives.
    Mutant("c of IWAE", "objectives.py",
           "        return v, v**2\n", "        return v, v\n",
           "tests/test_objectives.py tests/test_against_surrogate_losses.py"),
    Mutant("order of VR-IWAE", "objectives.py",
           "v * (self.alpha + (1 - self.alpha) * v)", "v * (self.alpha + v)",
           "tests/test_objectives.py tests/test_against_surrogate_losses.py"),
    Mutant("share of JVI", "objectives.py",
           "share = (size - 1) / size", "share = 1.0",
           "tests/test_objectives.py tests/test_against_surrogate_losses.py"),
    # Resampling, weights, keys.
    Mutant("off by one in resampling", "evaluation/resampling.py",
           "places_left = num_kept - jax.lax.broadcasted_iota",
           "places_left = num_kept - 1 - jax.lax.broadcasted_iota",
           "tests/evaluation/test_resampling.py"),
    Mutant("weights are not divided", "evaluation/pull.py",
           "v / jnp.where(is_full, probabilities, 1)", "v",
           "tests/test_bound.py tests/test_keys.py"),
    Mutant("weight that is no number", "evaluation/weights.py",
           "jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)", "log_weights",
           "tests/test_bound.py"),
    Mutant("outside of the support", "evaluation/weights.py",
           "log_weights if inside is None else jnp.where(inside, log_weights, -jnp.inf)",
           "log_weights", "tests/test_bound.py"),
    Mutant("one key for all latents", "hierarchy.py",
           "keys = jax.random.split(key, len(self.parents))",
           "keys = [key] * len(self.parents)", "tests/test_hierarchy.py"),
    Mutant("swapped keys", "evaluation/keys.py",
           "_RESAMPLING = 2**32 - 1", "_RESAMPLING = 4", "tests/test_keys.py"),
    Mutant("every block has the first samples", "evaluation/keys.py",
           "jnp.asarray(start, jnp.uint32) + jnp.arange", "jnp.arange", "tests/test_keys.py"),
    Mutant("noise of another sample", "evaluation/pull.py",
           "lambda keys: jnp.take_along_axis(keys, index, axis=0)",
           "lambda keys: keys[: len(index)]", "tests/test_noise.py"),
    Mutant("particles are not chosen", "filtering.py",
           "ancestors = jnp.where(resampled, chosen, same)",
           "ancestors = same", "tests/test_filtering.py"),
    # Paths, chains, masks, programs.
    Mutant("path of a gamma", "reexpression/families/implicit.py",
           "return gamma_path(concentration, stop(z * rate)) / rate",
           "return gamma_path(concentration, stop(z * rate)) * rate",
           "tests/reexpression/test_families.py"),
    Mutant("mask of a chain", "sequences/densities.py",
           "jnp.sum(terms if present is None else jnp.where(present, terms, 0), axis=0)",
           "jnp.sum(terms, axis=0)", "tests/test_chain.py"),
    Mutant("direction of a chain", "sequences/walk.py",
           "        z = jnp.flip(z, 0) if self.reverse else z\n        return jnp.moveaxis",
           "        return jnp.moveaxis", "tests/test_chain.py"),
    Mutant("scale of a subsample", "numpyro/bound.py",
           'return {"loss": -total * prior.layout.scale, "mutable_state": mutable}',
           'return {"loss": -total, "mutable_state": mutable}',
           "tests/numpyro/test_numpyro.py"),
    Mutant("handlers.scale", "numpyro/programs.py",
           'log_prob = log_prob * (site["scale"] / self.scale)', "pass",
           "tests/numpyro/test_numpyro.py"),
    Mutant("hidden parameters", "reexpression/paths.py",
           "return hoisted(*arguments, *map(guard, values))",
           "return hoisted(*arguments, *values)", "tests/test_closures.py"),
    # PyTorch and Pyro.
    Mutant("PyTorch: weights are not divided", "torch/weights.py",
           "kept = take_rows(v, index) / torch.where(is_kept, probabilities,"
           " torch.ones_like(probabilities))", "kept = take_rows(v, index)",
           "tests/torch/test_torch_bound.py"),
    Mutant("Pyro: mask", "pyro/programs.py",
           'return scale_and_mask(log_prob, site["scale"] / self.scale, site["mask"])',
           'return scale_and_mask(log_prob, site["scale"] / self.scale, None)',
           "tests/pyro/test_pyro_bound.py"),
)  # fmt: skip


def caught_by(mutant: Mutant, selections: list[list[str]]) -> tuple[str, float] | None:
    """The first test that fails with the fault, and the seconds that it took."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "gdregs"
        shutil.copytree(ROOT / "src" / "gdregs", source)
        path = source / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} places")
        path.write_text(text.replace(mutant.old, mutant.new))
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        for selection in selections:
            command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", *selection]
            run = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
            if failed:
                return failed[1], time.monotonic() - begun
            if run.returncode not in (0, 5):  # 5: nothing was selected
                raise SystemExit(f"{mutant.name}: pytest {selection}\n{run.stdout}{run.stderr}")
    return None


def selections_of(mutant: Mutant, *, first: bool) -> list[tuple[str, list[str]]]:
    """What to run, in turn, and to which suite it belongs."""
    is_torch = mutant.file.startswith(("torch/", "pyro/"))
    where = [*mutant.where.split(), "-n", "0", "--jaxtyping-packages=", "-m"]
    if is_torch:
        return [("whole", [*where, "not nightly"])]
    chosen = [("pytest", [*where, FAST])]
    if not first:
        rest = ["--jaxtyping-packages=", "tests", "-m"]
        chosen += [("pytest", [*rest, FAST]), ("whole", [*where, SLOW]), ("whole", [*rest, SLOW])]
    return chosen


def judge(first: bool, mutant: Mutant) -> dict:
    """The suite, and the first test in it, that catches a fault."""
    row = {"file": mutant.file, "old": mutant.old, "new": mutant.new, "suite": None}
    for suite, selection in selections_of(mutant, first=first):
        found = caught_by(mutant, [selection])
        if found:
            return row | {"suite": suite, "test": found[0], "seconds": round(found[1], 1)}
    return row


def main() -> int:
    """Run what was asked for, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--first", action="store_true", help="only the files named with each")
    parser.add_argument("--jobs", type=int, default=2, help="how many faults at a time")
    arguments = parser.parse_args()
    wanted = [part.strip().lower() for part in arguments.only.split(",") if part.strip()]
    path = RESULTS / "mutants.json"
    rows = json.loads(path.read_text())["mutants"] if path.exists() else {}
    chosen = [
        mutant
        for mutant in MUTANTS
        if not wanted or any(part in mutant.name.lower() for part in wanted)
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, row in zip(
            chosen, pool.map(partial(judge, arguments.first), chosen), strict=True
        ):
            rows[mutant.name] = row
            print(f"{mutant.name}: {row['suite']} {row.get('test', 'NOT CAUGHT')}", flush=True)
    rows = {m.name: rows[m.name] for m in MUTANTS if m.name in rows}
    summary = {
        "command": " ".join(["python benchmarks/mutants.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "hardware": platform.processor() or platform.machine(),
        "mutants": rows,
    }
    path.write_text(json.dumps(summary, indent=2) + "\n")
    (RESULTS / "mutants.md").write_text(page(rows))
    return sum(row["suite"] is None for row in rows.values())


def page(rows: dict) -> str:
    """The table."""
    by_pytest = sum(row["suite"] == "pytest" for row in rows.values())
    caught = sum(row["suite"] is not None for row in rows.values())
    lines = [
        "# One-line faults, and the tests that catch them",
        "",
        f"`python benchmarks/mutants.py`: of {len(rows)} faults `pytest` catches {by_pytest}, the"
        f" whole of CI {caught}.",
        "",
        "| fault | file | caught in | by |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        test = row.get("test", "").replace("|", r"\|")
        lines.append(f"| {name} | `{row['file']}` | {row['suite'] or 'no'} | `{test}` |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
