"""The report as an HTML page, rendered from the template."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tessera.tools.inspection.document import Comparison, Document, Model
from tessera.tools.report.compared import READING as COMPARED_READING
from tessera.tools.report.compared import (
    advice_rows,
    comparison_figures,
    expert_rows,
    figure_rows,
    findings,
    rank_rows,
    sides,
)
from tessera.tools.report.drawing import STYLE
from tessera.tools.report.drift import READING, drift_of
from tessera.tools.report.figures import model_figures
from tessera.tools.report.paragraphs import paragraphs
from tessera.tools.report.plot import Figure
from tessera.tools.report.tables import advice, advice_runs, comparison, layer_names
from tessera.tools.report.words import number, percent, plural, times, top_k_words

_FOLDER = Path(__file__).parent


def page(document: Document) -> str:
    """The complete file; all text from logs is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "times": times,
        "plural": plural,
        "file_name": lambda path: PurePath(path).name,
        "drawing": _drawing,
    }
    models = [_model(document, model) for model in document["models"]]
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    text: str = environment.get_template("page.html.j2").render(
        document=document,
        models=models,
        comparison=_comparison(document["comparison"]),
        drift_reading=READING,
        style=Markup(STYLE.read_text(encoding="utf-8") + style),
    )
    return text


def _model(document: Document, model: Model) -> dict[str, Any]:
    names = layer_names(document, model)
    rows = advice(model)
    return {
        "name": model["name"],
        "num_experts": model["num_experts"],
        "top_k": model["top_k"],
        "top_k_words": top_k_words(model),
        "layers": list(zip(names, model["layers"], strict=True)),
        "paragraphs": paragraphs(model, names),
        "figures": model_figures(document, model),
        "advice": rows,
        "advice_starts": [run[0].batch_size for run in advice_runs(rows)],
        "comparison": comparison(model),
        "drift": drift_of(model, names),
    }


def _comparison(compared: Comparison | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    return {
        "num_layers": compared["num_layers"],
        "notes": compared["notes"],
        "sides": sides(compared),
        "findings": findings(compared),
        "figures": comparison_figures(compared),
        "rows": figure_rows(compared),
        "ranks": rank_rows(compared),
        "experts": expert_rows(compared),
        "advice": advice_rows(compared),
        "reading": COMPARED_READING,
    }


def _drawing(figure: Figure) -> Markup:
    return Markup(figure.drawing.svg(figure.alternative, standalone=False))
