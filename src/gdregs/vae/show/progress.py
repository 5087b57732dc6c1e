"""What a training run says while it runs: a bar on a terminal, lines in a file, or nothing."""

import sys
import time
from pathlib import Path
from typing import Any

from gdregs.vae.errors import UserError


class Echo:
    """Prints, unless quiet."""

    def __init__(self, quiet: bool):
        self.quiet = quiet

    def __call__(self, text: str) -> None:
        """Print a text."""
        if not self.quiet:
            print(text, flush=True)


class EpochReport:
    """Reports finished epochs, with the bound and images/s.

    On a terminal it is a progress bar. Into a file it writes a line for an epoch, and not more than
    one a second.

    Args:
        total: How many epochs there are.
        done: How many of them are behind.
        quiet: Report nothing.
        writer: A writer of TensorBoard's files.
    """

    def __init__(self, total: int, done: int = 0, *, quiet: bool = False, writer: Any = None):
        from tqdm import tqdm

        self.total, self.done, self.quiet, self.writer = total, done, quiet, writer
        self.is_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            unit="epoch",
            dynamic_ncols=True,
            disable=quiet or not self.is_terminal,
        )
        self.test = ""
        self.name = ""
        self.last_line = 0.0

    def __enter__(self) -> "EpochReport":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def named(self, name: str, row: dict[str, Any]) -> None:
        """Count an epoch of one of several runs."""
        self.name = f"{name}: "
        self.bar.set_description(name)
        self(row)

    def __call__(self, row: dict[str, Any]) -> None:
        """Count an epoch, and show what its row of metrics says."""
        self.done += 1
        if "test_bound" in row:
            self.test = f"test {row['test_bound']:.2f}, "
        text = (
            f"bound {row['train_bound']:.2f}, {self.test}"
            f"ESS {row['effective_sample_size']:.1f}, {row['images_per_second']:.0f} images/s"
        )
        self.bar.set_postfix_str(text)
        self.bar.update()
        if self.writer is not None:
            _write_scalars(self.writer, row)
        now = time.monotonic()
        is_due = now - self.last_line >= 1 or self.done == self.total
        if not self.quiet and not self.is_terminal and is_due:
            self.last_line = now
            print(f"{self.name}epoch {self.done}/{self.total}: {text}", file=sys.stderr, flush=True)


def tensorboard_writer(folder: Path) -> Any:
    """A writer of TensorBoard's files in a run folder.

    Raises:
        UserError: If its library is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs tensorboardX; run: pip install 'gdregs[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))


def _write_scalars(writer: Any, row: dict[str, Any]) -> None:
    """Every number of a row, under its name."""

    def write(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                write(f"{name}/{key}", inner)
        elif isinstance(value, (int, float)):
            writer.add_scalar(name, value, row["epoch"])

    for name, value in row.items():
        if name != "epoch":
            write(name, value)
