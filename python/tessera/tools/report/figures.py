"""All figures of a model, in order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tessera.tools.inspection.document import Document, Model
from tessera.tools.report.drift_figures import drift_figures
from tessera.tools.report.line_figures import costs, padding, ranks
from tessera.tools.report.load_figures import load_over_layers, loads
from tessera.tools.report.plot import Figure
from tessera.tools.report.tables import comparison, layer_names

_DRAWN_LAYERS = 4  # the most uneven layers, for which bars are drawn


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one model, by the report's parts; with one expert there are no ranks.

    Of loads without tokens there is nothing on block sizes and drift.
    """

    block_size: tuple[Figure, ...]
    load: tuple[Figure, ...]
    ranks: tuple[Figure, ...]
    drift: tuple[Figure, ...]

    def all(self) -> tuple[Figure, ...]:
        """All figures in the report's order."""
        return (*self.block_size, *self.load, *self.ranks, *self.drift)


def model_figures(document: Document, model: Model) -> ModelFigures:
    """Draw all figures of `model`, which is one of the document's."""
    names = layer_names(document, model)
    layers = list(zip(names, model["layers"], strict=True))
    uneven = sorted(layers, key=lambda one: -one[1]["load"]["max_over_mean"])[:_DRAWN_LAYERS]
    drawn = [
        loads(layer, name, len(layers) == 1) for name, layer in layers if (name, layer) in uneven
    ]
    compared = comparison(model)
    return ModelFigures(
        block_size=(padding(model), costs(model)) if model["top_k"] else (),
        load=(*itertools.chain(*drawn), load_over_layers(model, names)),
        ranks=(ranks(compared),) if compared else (),
        drift=drift_figures(model, names),
    )
