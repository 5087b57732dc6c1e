"""Results files of the benchmarks."""

import json
import sys
from pathlib import Path

from gdregs.vae.runs.provenance import provenance


def save(path, content):
    origin = provenance(" ".join(["python", *sys.argv]))
    Path(path).write_text(json.dumps({**origin, **content}, indent=2) + "\n")
    print(f"wrote {path}")
