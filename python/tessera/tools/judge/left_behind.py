"""Collects what a snippet has left behind, in the interpreter that `trial` ran it in."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tessera.tools.judge.forms import REPORTS, Arrays
from tessera.tools.judge.snippet import AROUND, AS_MADE, FIRST, KEPT, RETURNED, UNWRITTEN
from tessera.tools.judge.worker import (
    CANARIES,
    OUTPUTS,
    ArrayLibrary,
    Outcome,
    differing,
    failed,
    malformed_in,
)

_INPUTS = ("topk_ids", "expert_map")


def write_outcomes(
    names: dict[str, Any], failure: BaseException | None, arrays: Arrays, device: str, file: str
) -> None:
    """Write the outcomes and inputs that a snippet has left behind to the file."""
    library = ArrayLibrary(arrays, device)
    found: tuple[Outcome, Outcome | None, dict[str, Any]]
    try:
        if failure is not None:
            raise failure
        found = _outcomes(names, library)
        library.synchronize()
    except BaseException as error:
        found = failed(library, error), None, {}
    Path(file).write_bytes(pickle.dumps(found))
    sys.stdout.flush()
    # Skips the implementation's threads and exit handlers.
    os._exit(0)


def _outcomes(
    names: dict[str, Any], library: ArrayLibrary
) -> tuple[Outcome, Outcome | None, dict[str, Any]]:
    inputs = library.all_on_host({name: names[name] for name in _INPUTS if name in names})
    if RETURNED in names:
        return Outcome({}, malformed=malformed_in(library, names[RETURNED])), None, inputs
    present = [name for name in (*OUTPUTS, *REPORTS) if name in names]
    outputs = library.all_on_host({name: names[name] for name in present})

    def remembered(variable: str) -> dict[str, Any]:
        arrays = names.get(variable, [])
        return library.all_on_host(dict(zip(present, arrays, strict=bool(arrays))))

    altered = differing(remembered(AS_MADE), remembered(KEPT))
    trampled = tuple(
        name
        for name in present
        if AROUND + name in names and _is_trampled(library.host(names[AROUND + name]))
    )
    before = Outcome(remembered(FIRST)) if FIRST in names else None
    return Outcome(outputs, trampled, altered=altered), before, inputs


def _is_trampled(memory: Any) -> bool:
    around = np.concatenate([memory[:CANARIES], memory[-CANARIES:]])
    return bool(np.any(around != UNWRITTEN))
