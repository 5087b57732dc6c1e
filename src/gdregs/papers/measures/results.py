"""What an experiment leaves: numbers with their origin, figures, and the page of claims."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gdregs.papers.measures.claims import HOLDS, NUM_ERRORS, Claim, format_claims
from gdregs.papers.measures.figures import save_figure
from gdregs.papers.measures.looks import LOOKS
from gdregs.vae.errors import UserError
from gdregs.vae.files import write_json, write_text
from gdregs.vae.runs.provenance import provenance

PAGE = "claims.md"


class Result(NamedTuple):
    """All that an experiment found.

    Attributes:
        settings: A dataclass of what decides the numbers.
        numbers: What was measured, as JSON can hold it.
        claims: The papers' statements with their verdicts.
        figures: By file name, without the ending.
    """

    settings: Any
    numbers: Mapping[str, Any]
    claims: list[Claim]
    figures: Mapping[str, Any]


def check_folder(folder: Path, experiments: Mapping[str, tuple[str, ...]], quick: bool) -> None:
    """Make the folder, and refuse to write over anything but what the same experiments left.

    Args:
        folder: Where results will be written.
        experiments: The names of their figures by the names of experiments.
        quick: Whether it will be a quick run.

    Raises:
        UserError: If a file of another kind is in the way, or a quick run would replace a full one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}).") from None
    for name, figures in experiments.items():
        path = folder / f"{name}.json"
        content = read_result(path) if path.exists() else {"experiment": name, "quick": True}
        if content is None or content.get("experiment") != name:
            raise UserError(
                f"{path} is not a result of `gdregs reproduce {name}`; choose another --out."
            )
        if quick and not content.get("quick"):
            raise UserError(f"{path} is of a full run; choose another --out for a quick one.")
        for figure in figures:
            for file in (f"{figure}.png", f"{figure}.pdf"):
                if (folder / file).exists() and file not in content.get("figures", ()):
                    raise UserError(
                        f"{folder / file} is not a figure of `gdregs reproduce {name}`; choose"
                        " another --out."
                    )
    page = folder / PAGE
    if page.exists() and not page.read_text().startswith(_TITLE):
        raise UserError(f"{page} is not a page of claims; choose another --out.")


def write_result(
    folder: Path, name: str, result: Result, *, seconds: float, quick: bool
) -> list[str]:
    """Write `name.json` and the figures; returns the names of the files."""
    files = [f"{name}.json"]
    for figure_name, figure in result.figures.items():
        files += save_figure(figure, folder, figure_name)
    write_json(
        folder / f"{name}.json",
        {
            "experiment": name,
            "quick": quick,
            **provenance(" ".join(["gdregs", *sys.argv[1:]])),
            "seconds": round(seconds, 1),
            "settings": dataclasses.asdict(result.settings),
            "figures": [file for file in files if not file.endswith(".json")],
            "claims": [claim.to_dict() for claim in result.claims],
            **result.numbers,
        },
    )
    return files


_TITLE = "# The papers' claims, measured"


def write_page(folder: Path, titles: Mapping[str, str]) -> str:
    """Write the page of claims of all results in the folder; returns its name."""
    parts = [_TITLE]
    for name, title in titles.items():
        content = read_result(folder / f"{name}.json")
        if content is None or content.get("experiment") != name:
            continue
        claims = [Claim(**claim) for claim in content["claims"]]
        held = sum(claim.verdict == HOLDS for claim in claims)
        size = "**A quick run: its numbers decide little.** " if content["quick"] else ""
        parts.append(
            f"## {title}\n\n{size}{held} of {len(claims)} claims hold. `{content['command']}`,"
            f" {content['date']}, {content['hardware']}, {content['seconds']:.0f} s, seed"
            f" {content['settings']['seed']}; all numbers are in `{name}.json`.\n\n"
            + format_claims(claims)
            + "".join(
                f"\n![{title}]({file})\n" for file in content["figures"] if file.endswith(".png")
            )
        )
    parts.append(
        "Numbers are given with their standard error. A verdict is given where the number clears"
        f" its limit by {NUM_ERRORS:g} of them; where there are several trainings, by Student's t"
        f" once there are {', '.join(map(str, LOOKS))} of them, all statements of the experiment"
        " together: p is corrected by Holm's procedure, and of several K it says how sure it is"
        " that the statement holds at each, or fails at one. Variances and SNRs against K are"
        " averages over parameters and medians over groups of draws: at large K doubly"
        " reparameterized gradients have rare draws that are larger than all others by orders of"
        " magnitude. The means over groups are in the JSON files, as `mean_variance`.\n"
    )
    write_text(folder / PAGE, "\n\n".join(parts))
    return PAGE


def read_result(path: Path) -> dict[str, Any] | None:
    """A results file; None where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
