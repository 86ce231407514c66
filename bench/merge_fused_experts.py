"""Adds runs of `tessera bench --op fused_experts --device cuda` to a GPU's file of results.

A new run replaces the times of a shape that it measured. The shape keeps older times of other peers
and by other methods, in a row of the run that measured them. That row also keeps Tessera's times of
its run, because a ratio compares two times of one run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tessera.tools.bench.results import write_results

# What a row has by contender, and by method below that; and what it has by contender alone.
_BY_METHOD = ("us", "spread_us", "within_noise", "spoiled")
_TEXTS = ("failures", "violations", "refusals")


def merged(known: dict[str, Any] | None, run: dict[str, Any]) -> dict[str, Any]:
    """The file of results with another run, which may be in it already.

    Raises:
        ValueError: the run is on another GPU, or is no run of this op on a GPU.
    """
    if not isinstance(run, dict) or not {"run", "gpu", "contenders", "rows"} <= run.keys():
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
    """A row without what a newer one has measured again; None if that is all."""

    def is_peer(name: str) -> bool:
        return kinds[name] in ("peer", "part")

    def is_again(name: str, method: str) -> bool:
        return method in newer["us"].get(name, {})

    replaced = {method for times in newer["us"].values() for method in times}
    left = {
        method
        for name, times in row["us"].items()
        for method in times
        if method not in replaced or (is_peer(name) and not is_again(name, method))
    }
    if not left:
        return None

    def times_left(name: str, times: dict[str, Any]) -> dict[str, Any]:
        return {
            method: time
            for method, time in times.items()
            if method in left and not (is_peer(name) and is_again(name, method))
        }

    by_method = {
        key: {name: found for name, times in row[key].items() if (found := times_left(name, times))}
        for key in _BY_METHOD
    }
    texts = {
        key: {name: text for name, text in row[key].items() if name not in newer["us"]}
        for key in _TEXTS
    }
    return row | by_method | texts


def main() -> None:
    """Merge and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--into", type=Path, required=True, metavar="FILE", help="is overwritten")
    options = parser.parse_args()
    known = None
    try:
        if options.into.exists():
            known = json.loads(options.into.read_text())
            if not isinstance(known, dict) or not {"runs", "rows"} <= known.keys():
                raise ValueError("expected a file of runs and rows, which it would replace")
    except (OSError, ValueError) as error:
        parser.error(f"--into: {options.into}: {error}")
    for path in options.runs:
        try:
            known = merged(known, json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
    write_results(options.into, known)
    print(f"wrote {options.into}: {len(known['rows'])} rows of {len(known['runs'])} runs")


if __name__ == "__main__":
    main()
