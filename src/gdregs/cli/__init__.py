"""The command line: one file for what trains, what measures, and what draws.

It may import everything.
"""

import importlib.util
import os
import sys
from typing import NoReturn

import gdregs
from gdregs.cli.configuration import with_file
from gdregs.cli.drawing import complete, sample, show
from gdregs.cli.measuring import encode, evaluate, export
from gdregs.cli.training import compare, train
from gdregs.papers.command import reproduce
from gdregs.vae.errors import UserError

_EXTRAS = ("filelock", "matplotlib", "PIL", "pooch", "scipy", "sklearn", "tqdm", "tyro", "yaml")

COMMANDS = {
    command.__name__: command
    for command in (train, compare, evaluate, sample, complete, encode, show, export, reproduce)
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code.

    2 is for a mistake of the user's, 3 for a training that has diverged, 1 for what the machine
    could not do, 130 for an interruption.
    """
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"gdregs: {', '.join(missing)} not installed; run: pip install 'gdregs[cli]'",
            file=sys.stderr,
        )
        return 2
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        print(f"gdregs {gdregs.__version__}")
        return 0
    import tyro

    try:
        commands, given = with_file(COMMANDS, given)
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="gdregs",
            description="Train variational autoencoders with low-variance gradient estimators.",
            args=given,
        )
    except UserError as error:
        print(f"gdregs: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        rest = (
            "what had finished is written; the same command continues"
            if given[:1] == ["reproduce"]
            else "the same command continues from here"
        )
        print(f"gdregs: interrupted; {rest}.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"gdregs: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def run_script() -> NoReturn:
    """What the script `gdregs` runs: `main`, and the end of the process with its exit code.

    After a failure or Ctrl-C a program of XLA's may still run on a thread of its own, which ends in
    a segmentation fault where Python is torn down below it. What was saved is whole, so that the
    process ends at once.
    """
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit()
