"""Faults put into a copy of the source: after how many programs does the fuzz find each?"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzzing import record
from mutants import MUTANTS, ROOT, Mutant

CHOSEN = {
    "STL for DReGs": "torch",
    "share of the likelihood": "torch",
    "share of the rest": "torch",
    "PyTorch: weights are not divided": "torch",
    "parents do not move": "core",
    "c of IWAE": "core",
    "weights are not divided": "core",
    "path of a gamma": "core",
    "scale of a subsample": "numpyro",
}
"""Faults of `benchmarks/mutants.py`, and the front-end that looks for each."""

MORE = (
    (
        "core",
        Mutant(
            "posterior is not stopped",
            "evaluation/pull.py",
            'gated_density(model.posterior, posterior_row.density, "posterior", log_prob)\n'
            "    terms = (\n",
            'gated_density(model.posterior, 1, "posterior", log_prob)\n    terms = (\n',
            "",
        ),
    ),
    (
        "torch",
        Mutant(
            "PyTorch: factors of the posterior",
            "torch/surrogate.py",
            "return constant + slope * (1 - factor * (1 - r))",
            "return constant + slope * r",
            "",
        ),
    ),
    (
        "pyro",
        Mutant(
            "Pyro: scale of a subsample",
            "pyro/bound.py",
            "return -value.sum() * scale",
            "return -value.sum()",
            "",
        ),
    ),
)
"""Faults of paths that those do not reach."""


def run(arguments: argparse.Namespace) -> int:
    """Look for each fault; returns how many were not found."""
    known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    rows = known.get("mutants", {})
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    chosen = [(frontend, by_name[name]) for name, frontend in CHOSEN.items()]
    for frontend, mutant in [*chosen, *MORE]:
        if arguments.only.lower() not in mutant.name.lower():
            continue
        rows[mutant.name] = find(mutant, frontend, arguments.seed, arguments.programs)
        print(f"{mutant.name}: {rows[mutant.name]}", flush=True)
        record.write_part(arguments.results, "mutants", rows)
    return sum(not row["found"] for row in rows.values())


def find(mutant: Mutant, frontend: str, seed: int, programs: int) -> dict:
    """Run programs until one fails with the fault that does not fail without it."""
    begun = time.monotonic()
    row: dict = {"file": mutant.file, "frontend": frontend, "found": False, "programs": 0}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src" / "gdregs", Path(folder) / "gdregs")
        path = Path(folder) / "gdregs" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            return {**row, "text": f"{mutant.file} has {text.count(mutant.old)} such places"}
        path.write_text(text.replace(mutant.old, mutant.new))
        last = seed + programs
        while seed < last and not row["found"]:
            failed = first_failure(frontend, seed, last - seed, folder)
            row["programs"] += (failed[0] if failed else last - 1) - seed + 1
            if failed is None:
                break
            if first_failure(frontend, failed[0], 1, None) is None:
                row |= {"found": True, "seed": failed[0], "kind": failed[1], "text": failed[2]}
            seed = failed[0] + 1
    return {**row, "seconds": round(time.monotonic() - begun)}


def first_failure(
    frontend: str, seed: int, programs: int, source: str | None
) -> tuple[int, str, str] | None:
    """Seed, kind and text of the first program that fails, with the source in a folder."""
    environment = {**os.environ, **({"PYTHONPATH": source} if source else {})}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "fuzz.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--until-failure"]
        command += ["--frontend", frontend, "--seed", str(seed), "--programs", str(programs)]
        done = subprocess.run(
            [*command, "--results", str(results)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not results.exists():
            raise SystemExit(done.stderr)
        rows = json.loads(results.read_text())[frontend]["rows"]
    for name, (kind, _, _, text) in rows.items():
        if kind in record.FAILURES:
            return int(name), kind, re.sub(r"\s+", " ", text)
    return None
