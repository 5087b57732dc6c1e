"""What a program shows: right, refused in words, biased, raw, or not to be decided."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fuzzing.program import Program
from fuzzing.statistics import compare

WORDS = (TypeError, ValueError, NotImplementedError)


class Outcome(NamedTuple):
    """What came of a program.

    Attributes:
        kind: `right`; `refused` (in words, where the evaluator fails as well); `declined` (in
            words, where the evaluator runs); the failures `biased`, `inexact`, `nan`, `raw`; or
            `undecided`; or `unjudged`, where the evaluator fails.
        text: The entry, the property or the error.
        draws: How many were compared.
        seconds: What it took.
    """

    kind: str
    text: str
    draws: int
    seconds: float

    @property
    def is_failure(self) -> bool:
        """Whether something is to be mended."""
        return self.kind in ("biased", "inexact", "nan", "raw")


def is_refusal(error: BaseException) -> bool:
    """Whether gdregs itself raised it, with a sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    is_ours = bool(frames) and "gdregs" in Path(frames[-1].filename).parts
    text = str(error).strip()
    return is_ours and isinstance(error, WORDS) and text.endswith((".", ")")) and len(text) > 30


def describe(error: BaseException) -> str:
    """An error in one line, with the last line of code."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    text = " ".join(str(error).split())[:400]
    return f"{type(error).__name__} in {Path(last.filename).name}: {text}"


def judge(
    program: Program, make: Callable[[Program], Any], *, blocks: int | None = None
) -> Outcome:
    """Run a program and its evaluator; exact properties first, then means.

    Args:
        program: The program.
        make: A front-end's runner.
        blocks: How many blocks of draws the first look has; the runner's choice unless given.
    """
    begun = time.monotonic()

    def outcome(kind: str, text: str, draws: int = 0) -> Outcome:
        return Outcome(kind, text, draws, round(time.monotonic() - begun, 1))

    try:
        runner = make(program)
    except Exception as error:
        return outcome("unjudged", f"set up: {describe(error)}")
    failure = None
    try:
        runner.ours(0)
    except Exception as error:
        failure = error
    try:
        expected = runner.peer(0)
    except Exception as error:
        if failure is not None and is_refusal(failure):
            return outcome("refused", describe(failure))
        return outcome(
            "unjudged", f"evaluator: {describe(error)}; ours: {failure and describe(failure)}"
        )
    if failure is not None:
        return outcome("declined" if is_refusal(failure) else "raw", describe(failure))
    if not np.isfinite(expected).all(0).any():
        return outcome("unjudged", "the evaluator is not finite")
    try:
        failed = runner.properties()
    except Exception as error:
        return outcome("raw", f"properties: {describe(error)}")
    if failed:
        return outcome("inexact", failed)
    verdict = compare(
        runner.ours,
        runner.peer,
        runner.names,
        rounding=runner.rounding,
        blocks=blocks or runner.blocks,
        by_block=runner.by_block,
    )
    return outcome(verdict.kind, verdict.text, verdict.draws)
