"""What a run has found so far, in a file that the next one goes on with."""

import collections
import datetime
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

from fuzzing.judge import Outcome

FAILURES = ("biased", "inexact", "nan", "raw")
KINDS = ("right", "refused", "declined", "unjudged", "undecided", *FAILURES)


class Record:
    """Outcomes of the programs of one front-end, beside those of others in the same file."""

    def __init__(self, path: Path, frontend: str, *, fresh: bool = False):
        self.path, self.frontend = path, frontend
        self.all: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        known = {} if fresh else self.all.get(frontend, {})
        self.rows: dict[int, list] = {int(seed): row for seed, row in known.get("rows", {}).items()}

    @property
    def seeds(self) -> set[int]:
        """Those that were judged."""
        return set(self.rows)

    def add(self, seed: int, outcome: Outcome) -> None:
        """Take an outcome, and write it down now and then."""
        text = "" if outcome.kind == "right" else outcome.text
        self.rows[seed] = [outcome.kind, outcome.seconds, outcome.draws, text]
        if len(self.rows) % 5 == 0:
            self.write()

    def counts(self) -> dict[str, int]:
        """How many programs there are of each kind."""
        found = collections.Counter(row[0] for row in self.rows.values())
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def line(self) -> str:
        """The counts in a line."""
        return f"{len(self.rows)} programs, " + ", ".join(
            f"{k} {n}" for k, n in self.counts().items()
        )

    def write(self) -> None:
        """Write what there is, with its reasons."""
        reasons: dict[str, list[int]] = {}
        for seed, (kind, _, _, text) in sorted(self.rows.items()):
            if kind in ("refused", "declined"):
                reasons.setdefault(general(text), []).append(seed)
        part = {
            "programs": len(self.rows),
            **self.counts(),
            "seconds": round(sum(row[1] for row in self.rows.values())),
            "draws": sum(row[2] for row in self.rows.values()),
            "seeds": [min(self.rows, default=0), max(self.rows, default=0)],
            "reasons": reasons,
            "command": " ".join(["python benchmarks/fuzz.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "hardware": platform.processor() or platform.machine(),
            "rows": {str(seed): row for seed, row in sorted(self.rows.items())},
        }
        write_part(self.path, self.frontend, part)


def write_part(path: Path, name: str, part: dict) -> None:
    """Put a part into a file that others have parts in."""
    parts = json.loads(path.read_text()) if path.exists() else {}
    parts[name] = part
    path.write_text(json.dumps(parts, indent=1) + "\n")


def general(text: str) -> str:
    """A reason without the names of one program."""
    return re.sub(r"'[^']*'|\d+(\.\d+)?", "_", text)[:200]
