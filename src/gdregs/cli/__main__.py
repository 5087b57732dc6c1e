"""`python -m gdregs.cli`."""

from gdregs.cli import run_script

run_script()
