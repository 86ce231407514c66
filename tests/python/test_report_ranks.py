"""The report on ranks: the tokens and layers of its figures, and its text about them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")

from report_documents import many_layers, one_layer
from report_page import ReportPage
from tessera.tools.report import write_html, write_pictures

RANKS = "Load of the busiest rank over the mean, on the second half of the tokens"
RANKS_OF_ALL = "Load of the busiest rank over the mean, on all tokens"


def read(document: Any, folder: Path) -> ReportPage:
    write_html(document, folder / "report.html")
    return ReportPage((folder / "report.html").read_text(encoding="utf-8"))


def hold_nothing_out(layer: Any) -> None:
    layer["num_held_out"] = 0
    for row in layer["ranks"]:
        row["held_out"] = None


def test_without_a_held_out_half(tmp_path: Path) -> None:
    document = one_layer()
    layer = document["models"][0]["layers"][0]
    hold_nothing_out(layer)
    page = read(document, tmp_path)
    row = layer["ranks"][2]["all_tokens"]
    assert page.definitions["Expert parallelism"] == (
        f"On all tokens the busiest of 8 ranks has {row['contiguous']:.2f}× the mean load with "
        f"contiguous placement and {row['in_hindsight']:.2f}× with one balanced in hindsight, by "
        "the same tokens. There are too few tokens to hold out."
    )
    assert RANKS not in page.tables
    head, *rows = page.tables[RANKS_OF_ALL]
    assert head == ["Ranks", "contiguous", "in hindsight"]
    assert rows[2] == ["8", f"{row['contiguous']:.2f}×", f"{row['in_hindsight']:.2f}×"]
    assert (
        "Every placement is judged on all tokens, 1,000. In hindsight: balanced by the loads of "
        "the tokens that judge. Balanced: too few tokens to hold out."
    ) in page.text
    assert "over the mean, on all tokens. 2 ranks: contiguous" in page.drawings[-3]


def test_the_picture_says_which_tokens_judge(tmp_path: Path) -> None:
    document = one_layer()
    write_pictures(document, tmp_path)
    drawn = (tmp_path / "ranks.svg").read_text(encoding="utf-8")
    assert ">on the second half of the tokens</text>" in drawn
    assert re.findall(r">(contiguous|balanced|in hindsight)</text>", drawn) == [
        "contiguous",
        "balanced",
        "in hindsight",
    ]
    hold_nothing_out(document["models"][0]["layers"][0])
    write_pictures(document, tmp_path)
    drawn = (tmp_path / "ranks.svg").read_text(encoding="utf-8")
    assert ">on all tokens</text>" in drawn
    assert ">balanced</text>" not in drawn


def test_layers_too_short_to_hold_out_are_in_no_column(tmp_path: Path) -> None:
    document = many_layers(num_layers=3)
    short, *others = document["models"][0]["layers"]
    hold_nothing_out(short)
    page = read(document, tmp_path)
    (caption,) = (one for one in page.tables if one.startswith(RANKS))
    assert caption == f"{RANKS}: mean over the layers, and their range"
    for row, of_layers in zip(
        page.tables[caption][1:], zip(*(one["ranks"] for one in others), strict=True), strict=True
    ):
        for cell, name in zip(row[1:], ("contiguous", "balanced", "in_hindsight"), strict=True):
            ratios = [one["held_out"][name] for one in of_layers]
            shown = re.findall(r"[\d.]+", cell)
            assert [float(one) for one in shown] == pytest.approx(
                [sum(ratios) / 2, min(ratios), max(ratios)], abs=0.0051
            )
    assert "Too few tokens to hold out, and left out: 1 layer. Means over 2 layers." in page.text
    text = page.definitions["Expert parallelism"]
    whole = [one["ranks"][2]["all_tokens"]["contiguous"] for one in (short, *others)]
    assert ", in the mean over 2 layers." in text
    assert " Too few tokens to hold out in 1 layer. On all tokens it is " in text
    assert f"is {sum(whole) / 3:.2f}× with contiguous placement and " in text
    assert text.endswith("in hindsight, in the mean over 3 layers.")


def test_a_balanced_placement_that_is_worse_is_said_to_be(tmp_path: Path) -> None:
    document = one_layer()
    for row in document["models"][0]["layers"][0]["ranks"]:
        number = row["num_ranks"]
        row["held_out"] = {
            "contiguous": 1.5,
            "balanced": 1.7 if number in (4, 16, 32) else 1.504,  # which is shown as 1.50, too
            "in_hindsight": 1.6 if number == 2 else 1.4,
        }
    text = read(document, tmp_path).definitions["Expert parallelism"]
    assert (
        " Balanced placement is worse than contiguous on 4, 16 and 32 ranks. "
        "Even in hindsight the balanced one, which is greedy, is worse on 2 ranks. On all tokens "
    ) in text
    for row in document["models"][0]["layers"][0]["ranks"]:
        row["held_out"] = dict.fromkeys(row["held_out"], 1.5)
    assert "worse" not in read(document, tmp_path).definitions["Expert parallelism"]
