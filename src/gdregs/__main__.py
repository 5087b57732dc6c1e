"""`python -m gdregs`."""

from gdregs.cli import run_script

run_script()
