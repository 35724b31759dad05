"""How `make docs` builds the site: the pages of this folder, and a reference made from the docstrings."""

import re
from typing import Any

import spectral

project = "spectral"
author = "The spectral authors"
copyright = author
version = release = spectral.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["conf.py"]
smartquotes_action = "D"  # dashes alone: what stands between quotes is code
html_theme = "furo"
html_title = "spectral"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

autosummary_generate = False  # tables only: each page documents its names itself
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # a name's own `Parameters` say it in words
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_google_docstring = False
napoleon_use_ivar = True  # fields of results as a list, not as members
napoleon_use_rtype = False

CODE = re.compile(r"`([^`]+)`")
DOCTEST = re.compile(r"^[ ]*>>> .*\n(?:^[ ]*\S.*\n)*", re.MULTILINE)


def as_plain_text(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are text with `code` between single backticks and sections of numpydoc; nothing else in them is markup."""
    text, pieces, at = "\n".join(lines) + "\n", [], 0
    for example in DOCTEST.finditer(text):
        pieces += [_prose(text[at : example.start()]), example.group()]
        at = example.end()
    lines[:] = ("".join(pieces) + _prose(text[at:])).split("\n")


def _prose(text: str) -> str:
    parts = CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            follows = parts[i + 1][:1]
            parts[i] = f"``{part}``" + ("\\ " if follows.isalnum() else "")
        else:
            parts[i] = re.sub(r"([\\*|])|(?<=\w)_(?!\w)", lambda m: "\\" + m.group(), part)
    return "".join(parts)


def setup(app: Any) -> None:
    """Before napoleon (priority 500), which writes markup of its own."""
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)
