"""How commands mark their arguments; without tyro, `gdregs.cli.main` says what to install."""

try:
    import tyro
except ImportError:
    FLAT = POSITIONAL = None
else:
    FLAT = tyro.conf.arg(name="")
    POSITIONAL = tyro.conf.Positional
