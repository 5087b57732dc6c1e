"""The documentation site: `sphinx-build -W docs OUT`."""

import re

import gdregs

project = "gdregs"
author = "The gdregs authors"
version = release = gdregs.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gdregs {version}"

# Docstrings are written for readers of the source: $mathematics$, `code`, Google's sections.
default_role = "code"
napoleon_custom_sections = ["Reference"]
napoleon_use_rtype = False
napoleon_attr_annotations = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"


def mathematics_to_rst(app, what, name, obj, options, lines):
    """Turn the docstrings' $mathematics$ into roles, before anything else reads it."""
    del app, what, name, obj, options
    text = "\n".join(lines)

    def display(match):
        indent = match[1]
        formula = " ".join(match[2].split())
        return f"\n{indent}.. math:: {formula}\n"

    text = re.sub(r"(?m)^([ ]*)\$\$(.+?)\$\$[ ]*$", display, text, flags=re.DOTALL)
    text = re.sub(r"\$([^$]+?)\$", lambda m: f":math:`{' '.join(m[1].split())}`", text)
    lines[:] = text.split("\n")


def setup(app):
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", mathematics_to_rst, priority=400)
