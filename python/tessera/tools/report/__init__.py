"""The document of `tessera inspect` as one HTML file, and its figures as separate files.

File names that are not UTF-8 are shown with question marks.
"""

from __future__ import annotations

import re
from pathlib import Path

from tessera.tools.inspection.document import Document
from tessera.tools.output_files import write_files
from tessera.tools.report.compared import comparison_figures
from tessera.tools.report.figures import model_figures
from tessera.tools.report.plot import Figure


def require() -> None:
    """Refuse, before any work, a report that could not be written.

    Raises ValueError where jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ValueError(
            "report: jinja2 is not installed: pip install jinja2, or pip install '.[report]' in a "
            "checkout of Tessera"
        ) from None


def write_html(document: Document, path: Path) -> None:
    """Write the report, which needs no other file and no network; an existing file is replaced.

    `document` is what `tessera inspect --json` prints.
    """
    write_files({path: html(document)}, force=True)


def write_pictures(document: Document, folder: Path) -> list[Path]:
    """Write each figure as an SVG file, and return their paths; existing files are replaced.

    The names say what is shown, such as `padding.svg`; with several models they begin
    with the model's.
    """
    contents = pictures(document, folder)
    write_files(contents, force=True)
    return list(contents)


def html(document: Document) -> bytes:
    """The report as the content of a file."""
    require()
    from tessera.tools.report.page import page

    return page(document).encode(errors="replace")


def pictures(document: Document, folder: Path) -> dict[Path, bytes]:
    """The files of `write_pictures` and their contents."""
    found = {}
    compared = document["comparison"]
    for figure in comparison_figures(compared) if compared else ():
        found[folder / f"{figure.name}.svg"] = _content(figure)
    for place, model in enumerate(document["models"]):
        start = f"{place}_{_slug(model['name'])}_" if len(document["models"]) > 1 else ""
        for figure in model_figures(document, model).all():
            found[folder / f"{start}{figure.name}.svg"] = _content(figure)
    return found


def _content(figure: Figure) -> bytes:
    return figure.drawing.svg(figure.alternative, standalone=True).encode(errors="replace")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
