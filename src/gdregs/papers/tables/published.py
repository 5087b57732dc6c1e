"""The published numbers of Tables 1 and 2."""

import importlib.resources
import json
from typing import Any

from gdregs.papers.measures.measure import Measured
from gdregs.vae.config import Config

Z95 = 1.96
"""The source's error bars are so many standard errors."""


def load_published() -> dict[str, Any]:
    """All of `published.json`: both tables, with what is odd about them in `notes`."""
    text = importlib.resources.files("gdregs.papers.tables").joinpath("published.json").read_text()
    return json.loads(text)


def published_bound(table: str, config: Config) -> Measured | None:
    """The number that a table prints for a cell, with its standard error; None if it has none."""
    for row in load_published().get(table, {}).get("rows", ()):
        same = (row["dataset"], row["num_layers"]) == (config.dataset, config.num_layers)
        if same and config.pair in row["bounds"]:
            value, error_bar = row["bounds"][config.pair]
            return Measured(value, error_bar / Z95)
    return None
