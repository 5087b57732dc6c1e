"""Results files and tables of the benchmarks."""

import json
import sys
from pathlib import Path

from gdregs.vae.provenance import provenance


def save(path, content):
    origin = provenance(" ".join(["python", *sys.argv]))
    Path(path).write_text(json.dumps({**origin, **content}, indent=2) + "\n")
    print(f"wrote {path}")


def table(header, rows):
    rows = [header, *rows]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(header))]
    lines = [
        "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
