"""Runs the code of a program."""


def run_text(text: str, *, keeps_imports: bool, factor=None) -> dict:
    """The names that a program defines; with the evaluator's factors where gdregs is left out."""
    if not keeps_imports:
        lines = text.splitlines()
        text = "\n".join(
            line for line in lines if not line.startswith(("import gdregs", "from gdregs"))
        )
    module: dict = {"with_factor": factor}
    exec(compile(text, "<program>", "exec"), module)
    return module
