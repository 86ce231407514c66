"""Adds runs of `tessera bench --op fused_experts --device cuda` to a GPU's file of results.

A shape keeps the times of peers that the new run has not measured, in a row of their own run, with
Tessera's times of that run beside them: ratios are of one run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tessera.tools.bench.results import write_results

# What a row has by contender.
_BY_CONTENDER = ("us", "spread_us", "within_noise", "spoiled", "failures", "violations", "refusals")


def merged(known: dict[str, Any] | None, run: dict[str, Any]) -> dict[str, Any]:
    """The file of results with another run, which may be in it already.

    Raises:
        ValueError: the run is on another GPU, or is no run of this op on a GPU.
    """
    if "run" not in run or "gpu" not in run:
        raise ValueError("expected results of tessera bench --op fused_experts --device cuda")
    name, gpu = run["run"], run["gpu"]
    runs = [one for one in known["runs"] if one["run"] != name] if known else []
    rows = [row for row in known["rows"] if row["run"] != name] if known else []
    if others := {one["gpu"] for one in runs} - {gpu}:
        raise ValueError(f"expected results of {min(others)}, got {gpu}")
    new = {row["shape"]: {"run": name, **row} for row in run["rows"]}
    kinds = {each: one["kind"] for one in [*runs, run] for each, one in one["contenders"].items()}
    kept = [
        left
        for row in rows
        if (left := row if row["shape"] not in new else _left(row, new[row["shape"]], kinds))
    ]
    found = [*kept, *new.values()]
    used = {row["run"] for row in found}
    about = {key: value for key, value in run.items() if key != "rows"}
    return {"runs": [one for one in [*runs, about] if one["run"] in used], "rows": found}


def _left(
    row: dict[str, Any], newer: dict[str, Any], kinds: dict[str, str]
) -> dict[str, Any] | None:
    """A row without the peers that a newer one has; None if no peer is left."""
    theirs = {name for name in row["us"] if kinds[name] in ("peer", "part")}
    old = theirs & newer["us"].keys()
    if theirs == old:
        return None
    return row | {
        key: {name: value for name, value in row[key].items() if name not in old}
        for key in _BY_CONTENDER
    }


def main() -> None:
    """Merge and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--into", type=Path, required=True, metavar="FILE", help="is overwritten")
    options = parser.parse_args()
    known = json.loads(options.into.read_text()) if options.into.exists() else None
    for path in options.runs:
        try:
            known = merged(known, json.loads(path.read_text()))
        except ValueError as error:
            parser.error(f"{path}: {error}")
    write_results(options.into, known)
    print(f"wrote {options.into}: {len(known['rows'])} rows of {len(known['runs'])} runs")


if __name__ == "__main__":
    main()
