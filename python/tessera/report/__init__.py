"""The document of `tessera inspect` as one HTML file, and its figures as files of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tessera.inspection.document import Document
from tessera.report.figures import model_figures


def require() -> None:
    """Refuse, before any work, a report that could not be written.

    Raises ValueError where jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ValueError("report: jinja2 is not installed: pip install 'tessera[report]'") from None


def write_html(document: Document, path: Path) -> None:
    """Write the report, which needs no other file and no network; an existing file is replaced.

    `document` is what `tessera inspect --json` prints.
    """
    require()
    from tessera.report.page import page

    _write(path, page(document))


def write_pictures(document: Document, folder: Path) -> list[Path]:
    """Write each figure as an SVG file, and return their paths; existing files are replaced.

    The names say what is shown, such as `padding.svg`; where there are several models they begin
    with the model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place, model in enumerate(document["models"]):
        start = f"{place}_{_slug(model['name'])}_" if len(document["models"]) > 1 else ""
        for figure in model_figures(document, model).all():
            path = folder / f"{start}{figure.name}.svg"
            _write(path, figure.drawing.svg(figure.alternative, standalone=True))
            written.append(path)
    return written


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def _write(path: Path, text: str) -> None:
    """Whole or not at all: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
