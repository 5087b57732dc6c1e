"""The site names every public name; its examples run as doctests, and CI builds it."""

from pathlib import Path

import gdregs

DOCS = Path(__file__).parents[1] / "docs"


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "api.md").read_text()
    missing = [
        name for name in gdregs.__all__ if f"gdregs.{name}\n" not in text and name != "identities"
    ]
    assert not missing
    assert "gdregs.identities" in text


def test_every_public_name_has_a_docstring_with_its_source_or_example():
    for name in gdregs.__all__:
        thing = getattr(gdregs, name)
        if callable(thing):
            assert thing.__doc__, name
            assert (
                "Args:" in thing.__doc__
                or "Attributes:" in thing.__doc__
                or "Example:" in (thing.__doc__)
            ), name
