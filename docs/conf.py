"""How Sphinx makes the book of these pages: `make book`, where every warning is an error."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import find_lexer_class_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "Tessera"
version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
extensions = ["myst_parser"]
nitpicky = True
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"Tessera {version}"
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
linkcheck_timeout = 20

LISTED_PAGE = re.compile(r"^- \[.+?\]\((\S+)\.md\)", re.MULTILINE)
# Files of the repository that pages link to; a page of the book shows each of them.
linked_files: set[Path] = set()


def add_contents(_: Sphinx, docname: str, source: list[str]) -> None:
    """The lists of an index page are the book's contents, each under the heading that it has."""
    if Path(docname).name != "index":
        return
    for section in source[0].split("\n## ")[1:]:
        caption = section.partition("\n")[0]
        entries = "\n".join(LISTED_PAGE.findall(section))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def link_files(app: Sphinx, doctree: nodes.document) -> None:
    """Links to files outside docs/ lead to the pages that show these."""
    for link in list(doctree.findall(addnodes.download_reference)):
        page = DOCS / link["refdoc"]
        file = (page.parent / link["reftarget"]).resolve().relative_to(ROOT)
        linked_files.add(file)
        uri = app.builder.get_relative_uri(link["refdoc"], f"source/{file}")
        link.replace_self(nodes.reference("", "", *link.children, refuri=uri))


def file_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, content and template of the page of each linked file."""
    for file in sorted(linked_files):
        text = (ROOT / file).read_text(encoding="utf-8")
        lexer = find_lexer_class_for_filename(file.name)
        code = app.builder.highlighter.highlight_block(text, lexer.aliases[0] if lexer else "text")
        yield f"source/{file}", {"title": str(file), "body": f"<h1>{file}</h1>{code}"}, "page.html"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    # Runs before Sphinx collects the files that it would offer for download.
    app.connect("doctree-read", link_files, priority=100)
    app.connect("html-collect-pages", file_pages)
