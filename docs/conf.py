"""How Sphinx makes a site of these documents (`make docs`); they are Markdown, and read well without it."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "deploytools"
author = "deploytools"
extensions = ["myst_parser"]
exclude_patterns: list[str] = []

# Links within a page are by its headings, as code hosts make them.
myst_heading_anchors = 4
# What is a placeholder in a text, such as [TEXT][MORE], is no link.
myst_enable_extensions: list[str] = []

# Two dashes are an option, not a long dash.
smartquotes = False

html_theme = "furo"
html_title = "deploytools"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
highlight_language = "none"


def setup(app: Any) -> None:
    from docs.generated import messages, renewed

    def read(app: Any, name: str, source: list[str]) -> None:
        source[0] = renewed(source[0], {"messages": messages})

    app.connect("source-read", read)
