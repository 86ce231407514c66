"""How `tessera bench` evaluates times of two methods: ratios, verdicts, noise, floors, pictures."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from tessera.tools.bench.judgement import below_floor, judged_methods, less_flattering, ratio
from tessera.tools.bench.plot import beaten_floor, lines
from tessera.tools.bench.report import print_report

KINDS = {"tessera": "tessera", "quick": "peer", "slow": "peer", "floor/1": "floor"}

# By graph Tessera takes half the time of the best peer, by chain 1.2 times as long.
US = {
    "tessera": {"graph": 1.0, "chain": 3.0},
    "quick": {"graph": 2.0, "chain": 2.5},
    "slow": {"graph": 8.0, "chain": 9.0},
    "floor/1": {"graph": 1.05, "chain": 1.5, "l2": 4.0},
}


def row(us: dict[str, dict[str, float]], **others: Any) -> dict[str, Any]:
    known = {
        "op": "align_block_size",
        "shape": "16x8x2/16",
        "num_tokens": 16,
        "top_k": 2,
        "skew": "uniform",
    }
    known |= {"dtype": "int32", "map": "none", "shift_bytes": None, "trace": "", "us": us}
    known |= {"spread_us": {name: dict.fromkeys(of, 0.125) for name, of in us.items()}}
    known |= {key: {} for key in ("within_noise", "spoiled", "violations", "refusals", "failures")}
    return known | {"below_floor": below_floor(us, KINDS)} | others


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": "a processor",
        "commit": "abc",
        "methods": {"graph": "meaning", "chain": "meaning"},
        "methods_unavailable": {},
        "contenders": {name: {"kind": kind, "unavailable": ""} for name, kind in KINDS.items()},
        "rows": list(rows),
    }


def printed(*rows: dict[str, Any]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(console, document(*rows))
    return console.export_text()


def test_each_method_has_its_own_best_peer_and_floor() -> None:
    assert ratio(US, KINDS, "graph", "peer") == pytest.approx(0.5)
    assert ratio(US, KINDS, "chain", "peer") == pytest.approx(1.2)
    assert ratio(US, KINDS, "chain", "floor") == pytest.approx(2.0)
    assert ratio(US, KINDS, "l2", "floor") is None


def test_the_less_flattering_method_judges() -> None:
    assert less_flattering(US, KINDS, "peer") == pytest.approx(1.2)
    assert less_flattering(US, KINDS, "floor") == pytest.approx(2.0)
    swapped = {name: {"graph": of["chain"], "chain": of["graph"]} for name, of in US.items()}
    assert less_flattering(swapped, KINDS, "peer") == pytest.approx(1.2)
    assert less_flattering({"tessera": {"graph": 1.0}}, KINDS, "peer") is None


def test_methods_of_a_gpu_judge_before_others() -> None:
    assert judged_methods(US) == ["graph", "chain"]
    assert judged_methods({"a": {"burst": 1.0, "chain": 2.0}}) == ["chain", "burst"]
    assert judged_methods({"floor/1": {"l2": 4.0}}) == ["l2"]
    assert judged_methods({"tessera/1": {"call": 4.0, "eager": 5.0}}) == ["call"]
    assert judged_methods({"tessera": {"eager": 5.0}}) == []


def test_floors_are_beaten_by_method() -> None:
    assert below_floor(US, KINDS) == {"graph": {"tessera": 1.0}}
    close = {**US, "tessera": {"graph": 1.04, "chain": 1.2}}
    assert below_floor(close, KINDS) == {"chain": {"tessera": 1.2}}


def test_counts_by_each_method_and_by_both() -> None:
    ahead = {**US, "tessera": {"graph": 1.0, "chain": 2.0}}
    text = printed(row(US), row(ahead, shape="b"))
    assert "\nby graph: faster than the best peer on 2 of 2 shapes\n" in text
    assert "\nby chain: faster than the best peer on 1 of 2 shapes\n" in text
    both = "by the less flattering of graph and chain: faster than the best peer on 1 of 2 shapes"
    assert f"\n{both}\n" in text
    assert "\nslower than quick on 16x8x2/16: 3.00 against 2.50\n" in text
    assert "\nthe floor of b is wrong, method graph: tessera takes 1.00\n" in text


def test_a_difference_has_its_spread_beside_it() -> None:
    text = printed(row(US))
    assert re.search(r"^16x8x2/16 +1\.00 +2\.00 +8\.00 +1\.05 wrong +0\.95 +0\.50", text, re.M)
    differences = [rf"{us} \(0\.12\)" for us in (r"3\.00", r"2\.50", r"9\.00", r"1\.50")]
    assert re.search(rf"^16x8x2/16 +{' +'.join(differences)} +2\.00 +1\.20", text, re.M)


def test_what_is_within_the_noise_is_said_and_not_shown() -> None:
    us = {**US, "quick": {"graph": 2.0}}
    noisy = row(us, within_noise={"quick": {"chain": -0.03}})
    noisy["spread_us"]["quick"]["chain"] = 0.1
    text = printed(noisy, row(US, shape="b"))
    assert re.search(r"^16x8x2/16 +3\.00 \(0\.12\) +- +9\.00 \(0\.12\)", text, re.M)
    said = "quick: within the noise on 16x8x2/16, method chain: -0.03 with an interquartile range"
    assert f"{said} of 0.10\n" in text


def test_pictures_mark_where_a_floor_is_beaten() -> None:
    found = document(row(US), row({**US, "tessera": {"graph": 3.0, "chain": 1.4}}, num_tokens=64))
    assert beaten_floor(lines(found, "graph")) == [(32, pytest.approx(1.05))]
    assert beaten_floor(lines(found, "chain")) == [(128, pytest.approx(1.5))]
    assert beaten_floor({"tessera": [(1, 1.0)]}) == []
