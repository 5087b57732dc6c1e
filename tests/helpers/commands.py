"""The command line, called from a test."""

from gdregs.cli import main

SMALL = [
    "--num-samples", "4", "--gradient-samples", "2", "--latent-size", "3", "--hidden-size", "8",
    "--train-images", "128",
]  # fmt: skip


def run(*arguments):
    """The exit code of `gdregs` with these arguments."""
    return main([str(argument) for argument in arguments])
