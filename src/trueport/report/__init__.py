"""Results rendered. Every reporter takes a stored JSON document and gives text; one file per form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trueport.report import html, markdown
from trueport.results import Document, dumps

REPORTERS: Mapping[str, tuple[str, Callable[[Document], str]]] = {
    "json": ("result.json", dumps),
    "html": ("report.html", html.render),
    "markdown": ("report.md", markdown.render),
}
"""form -> (file name, reporter)."""
