"""Tessera for Hugging Face Transformers: importing this registers the experts implementation.

import tessera.transformers

model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="tessera")
print(tessera.transformers.report(model))

docs/transformers.md has the details.
"""

from __future__ import annotations

import importlib
import re

__all__ = ["report"]

_OLDEST = (5, 12)


def _require_transformers() -> None:
    needed = f"tessera.transformers: expected transformers {'.'.join(map(str, _OLDEST))} or newer"
    try:
        version = importlib.import_module("transformers").__version__
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(f"{needed}, found none (pip install 'tessera[transformers]')") from None
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _OLDEST:
        raise ImportError(f"{needed}, found {version}")


_require_transformers()

import torch  # noqa: E402
from transformers.integrations.finegrained_fp8 import FP8ExpertsInterface  # noqa: E402
from transformers.integrations.moe import ExpertsInterface  # noqa: E402

from tessera.transformers.experts import experts_forward, reason_unserved  # noqa: E402

ExpertsInterface.register("tessera", experts_forward)
# transformers looks for the forward of experts in fp8 elsewhere.
FP8ExpertsInterface.register("tessera", experts_forward)


def report(model: torch.nn.Module) -> dict[str, str]:
    """Which experts of a model Tessera serves; does not run the model.

    A module counts as experts if transformers dispatches its forward, if its class is called
    `...Experts`, or if it is called `experts`.

    Returns:
        For the name of each experts module in `model.named_modules()`, "served", or the reason why
        its calls run in another way. Calls of served modules that autograd follows run eagerly.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            "tessera.transformers.report: model: expected a torch.nn.Module, got "
            f"{type(model).__name__}"
        )
    return {
        name: reason_unserved(module) or "served"
        for name, module in model.named_modules()
        if hasattr(module, "is_concatenated")
        or type(module).__name__.endswith("Experts")
        or name.rpartition(".")[2] == "experts"
    }
