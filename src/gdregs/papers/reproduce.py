"""Run experiments, show how far they are, and write what they find."""

import dataclasses
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from gdregs.papers.experiments import (
    cross_entropy,
    linear_trainings,
    linear_vae,
    mixing,
    sequences,
    top_down,
    toy,
)
from gdregs.papers.measures.claims import FAILS, HOLDS, UNDECIDED
from gdregs.papers.measures.results import check_folder, write_page, write_result
from gdregs.vae.errors import UserError

EXPERIMENTS: dict[str, ModuleType] = {
    "toy": toy,
    "linear-vae": linear_vae,
    "linear-vae-trainings": linear_trainings,
    "cross-entropy": cross_entropy,
    "mixing": mixing,
    "sequences": sequences,
    "top-down": top_down,
}
ANALYTIC = ("toy", "linear-vae", "cross-entropy")


def reproduce(name: str, folder: Path, *, seed: int = 0, quick: bool = False) -> list[str]:
    """Run an experiment, or all analytic ones, and write results, figures and the page of claims.

    Args:
        name: Of the experiment; `all-analytic` for those that need no images.
        folder: Where the files go; those of the same experiments are replaced.
        seed: Of the data, the parameters and the draws.
        quick: Seconds instead of minutes; the numbers then decide little.

    Returns:
        Lines that say what was found and where it stands.

    Raises:
        UserError: If a file of another kind is in the way.
    """
    if seed < 0:
        raise UserError("--seed must not be negative.")
    names = ANALYTIC if name == "all-analytic" else (name,)
    check_folder(folder, {each: EXPERIMENTS[each].FIGURES for each in names}, quick)
    titles = {name: module.TITLE for name, module in EXPERIMENTS.items()}
    lines = []
    for each in names:
        module = EXPERIMENTS[each]
        settings = dataclasses.replace(module.Settings(), seed=seed)
        settings = module.quick(settings) if quick else settings
        begun = time.perf_counter()
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        total = module.total_cost(settings)
        with tqdm(total=total, desc=each, bar_format=bar_format, dynamic_ncols=True) as bar:
            result = module.run(settings, bar.update)
            bar.update(total - bar.n)
        seconds = time.perf_counter() - begun
        files = write_result(folder, each, result, seconds=seconds, quick=quick)
        verdicts = Counter(claim.verdict for claim in result.claims)
        lines.append(
            f"{module.TITLE}: of {len(result.claims)} claims {verdicts[HOLDS]} hold,"
            f" {verdicts[FAILS]} do not, {verdicts[UNDECIDED]} are undecided"
        )
        lines.append(f"  {folder}: {', '.join(files)}")
    lines.append(f"{folder / write_page(folder, titles)}: every claim with its measurement")
    return lines
