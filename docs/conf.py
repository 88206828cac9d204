"""How Sphinx makes a site of these documents (`make docs`); they are Markdown, and read well without it."""

project = "deploytools"
author = "deploytools"
extensions = ["myst_parser"]
exclude_patterns: list[str] = []

# Links within a page are by its headings, as code hosts make them.
myst_heading_anchors = 4
# What is a placeholder in a text, such as [TEXT][MORE], is no link.
myst_enable_extensions: list[str] = []

html_theme = "furo"
html_title = "deploytools"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
highlight_language = "none"
