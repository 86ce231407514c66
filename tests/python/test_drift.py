"""Drift: distances of the load of consecutive windows, and what the report says of them."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")

from report_documents import layer_of, log_of, many_layers, model_of, one_layer, skewed_ids
from report_page import ReportPage
from tessera.contract import synthetic_topk_ids
from tessera.tools.inspection.document import Layer
from tessera.tools.inspection.drift import by_chance, drift_figures
from tessera.tools.inspection.layer import LayerSums
from tessera.tools.report import html
from tessera.tools.report.drift import NEEDS, drift_of, drift_words


def layer(ids: np.ndarray, num_experts: int) -> Layer:
    sums = LayerSums(0, 0, num_experts, keep_repeated=True)
    sums.add(ids)
    sums.close()
    return sums.figures(num_experts)


def test_figures_by_hand() -> None:
    windows = np.array([[6, 2], [4, 4], [2, 6], [0, 0]])
    drift = drift_figures(windows, 4, 12)
    assert drift is not None
    assert drift["window_tokens"] == [4, 4, 4]
    assert drift["between"] == [0.25, 0.25]
    assert drift["first_to_last"] == 0.5
    assert drift["experts"] == [
        {"expert": 0, "shares": [0.75, 0.5, 0.25]},
        {"expert": 1, "shares": [0.25, 0.5, 0.75]},
    ]
    even = [1.5, 1.0, 1.5]
    assert drift["placed_by_first"] == {"num_ranks": 2, "balanced": even, "contiguous": even}


def test_a_placement_by_the_first_window_loses_what_moves() -> None:
    ids = np.repeat([[0, 4], [0, 1]], 8, axis=0)
    windows = np.stack([np.bincount(half.ravel(), minlength=16) for half in (ids[:8], ids[8:])])
    drift = drift_figures(windows, 8, 16)
    assert drift is not None
    placed = drift["placed_by_first"]
    assert (placed["num_ranks"], placed["balanced"]) == (8, [4.0, 4.0])
    assert placed["contiguous"] == [4.0, 8.0]


def test_the_end_of_a_layer_is_no_window_of_its_own_unless_half_full() -> None:
    slices = np.array([[4, 4], [4, 4], [1, 0]])
    drift = drift_figures(slices, 4, 9)
    assert drift is not None
    assert drift["window_tokens"] == [4, 5]
    drift = drift_figures(np.array([[4, 4], [4, 4], [2, 2]]), 4, 10)
    assert drift is not None
    assert drift["window_tokens"] == [4, 4, 2]


def test_too_few_ids_for_windows() -> None:
    assert drift_figures(np.array([[1, 1, 1], [1, 1, 0]]), 1, 2) is None
    assert drift_figures(np.array([[5, 1, 1]]), 7, 7) is None
    assert drift_figures(np.array([[5], [5]]), 5, 10) is None  # one expert


def test_windows_are_the_sixteenths_of_the_log() -> None:
    ids = synthetic_topk_ids(1600, 8, 2, seed=1)
    drift = layer(ids, 8)["drift"]
    assert drift is not None
    assert drift["window_tokens"] == [128] * 12 + [64]
    shares = [np.bincount(ids[i : i + 128].ravel(), minlength=8) for i in range(0, 1600, 128)]
    shares = [counts / counts.sum() for counts in shares]
    expected = [abs(a - b).sum() / 2 for a, b in itertools.pairwise(shares)]
    assert np.allclose(drift["between"], expected)
    assert drift["first_to_last"] == pytest.approx(abs(shares[0] - shares[-1]).sum() / 2)


@pytest.mark.parametrize("skew", [0.0, 1.2])
@pytest.mark.parametrize("num_ids", [64, 1000, 100_000])
def test_what_chance_makes(num_ids: int, skew: float) -> None:
    shares: Any = (1.0 + np.arange(64)) ** -skew
    shares /= shares.sum()
    rng = np.random.default_rng(3)
    one, other = (rng.multinomial(num_ids, shares, size=200) / num_ids for _ in range(2))
    mean = np.abs(one - other).sum(axis=1).mean() / 2
    assert by_chance(shares, num_ids, num_ids) == pytest.approx(mean, rel=0.15)


def test_a_load_that_does_not_move_is_said_to_be_chance() -> None:
    steady: Any = model_of("m", [layer_of(skewed_ids(5000, 16, 2, seed=1), 16, 0)], 2)
    text = drift_words(steady, ["layer 0"])
    assert "That is hardly more: no drift, or windows too short to show it. A placement" in text
    moving = np.concatenate([skewed_ids(500, 16, 2, seed=seed, skew=1.5) for seed in range(10)])
    model: Any = model_of("m", [layer_of(moving, 16, 0)], 2)
    text = drift_words(model, ["layer 0"])
    assert text.startswith("Over 10 windows of 500 tokens the load of neighbouring windows differs")
    assert "hardly more" not in text
    found = model["layers"][0]["drift"]["experts"][0]
    ratios = [16 * share for share in found["shares"]]
    assert f"Expert {found['expert']} moves most: {ratios[0]:.2f}× the mean load in the" in text
    assert f"{ratios[-1]:.2f}× in the last." in text


@pytest.mark.parametrize(
    ("num_tokens", "words"),
    [
        (1024, "16 windows of 64 tokens the"),
        (1078, "8 windows of 128 tokens (the last: 182) the"),
        (1088, "9 windows of 128 tokens (the last: 64) the"),
    ],
)
def test_windows_are_equal_but_for_the_last(num_tokens: int, words: str) -> None:
    model: Any = model_of("m", [layer(skewed_ids(num_tokens, 16, 2, seed=1), 16)], 2)
    windows = model["layers"][0]["drift"]["window_tokens"]
    assert sum(windows) == num_tokens and len(set(windows[:-1])) == 1
    assert drift_words(model, ["layer 0"]).startswith(f"Over {words} load of neighbouring")


def test_a_placement_of_an_expert_on_each_rank_is_not_judged() -> None:
    for num_experts, is_judged in ((8, False), (9, True)):
        document = one_layer()
        ids = skewed_ids(2000, num_experts, 2, seed=1)
        document["models"] = [model_of("m", [layer_of(ids, num_experts, 0)], 2)]
        page = ReportPage(html(document).decode())
        assert ("balanced by the first window" in page.definitions["Drift"]) == is_judged
        assert ("What a placement loses over the windows" in html(document).decode()) == is_judged


def test_many_layers_are_told_by_their_mean_and_the_most_drifting() -> None:
    document = many_layers(num_layers=12, num_experts=64)
    model = document["models"][0]
    model["layers"][3]["drift"] = None
    found = drift_of(model, [f"layer {i}" for i in range(12)])
    assert found is not None
    assert (found.num_layers, found.num_without, len(found.most)) == (11, 1, 4)
    distances = [one["drift"]["first_to_last"] for one in model["layers"] if one["drift"]]
    assert found.mean.first_to_last == pytest.approx(np.mean(distances))
    assert [row.first_to_last for row in found.most] == sorted(distances)[::-1][:4]
    page = ReportPage(html(document).decode())
    assert "in the mean over 11 layers" in page.definitions["Drift"]
    assert "Too few tokens for windows in 1 layer." in page.definitions["Drift"]
    head, *rows = page.tables[
        "Distances of the load of windows, in the 4 layers of 11 with the most drift"
    ]
    assert head[0] == "Layer"
    assert [row[0] for row in rows] == ["mean of 11", *(row.name for row in found.most)]


def test_the_heat_map_has_a_cell_for_each_window() -> None:
    document = one_layer()
    drift = document["models"][0]["layers"][0]["drift"]
    text = html(document).decode()
    titles = re.findall(r"<title>expert (\d+), window (\d+): ([\d.]+)× the mean</title>", text)
    assert titles == [
        (str(one["expert"]), str(window + 1), f"{64 * share:.2f}")
        for one in drift["experts"]
        for window, share in enumerate(one["shares"])
    ]


def test_without_windows_the_report_says_what_drift_needs() -> None:
    document = one_layer()
    document["models"][0]["layers"][0]["drift"] = None
    page = ReportPage(html(document).decode())
    assert page.definitions["Drift"] == NEEDS
    assert not any("drift" in caption.lower() for caption in page.tables)


def test_the_same_layers_of_files_of_one_name_are_told_apart() -> None:
    layers = [layer_of(skewed_ids(200, 8, 2, seed=i), 8, 3, log=i) for i in range(2)]
    document: Any = {
        **one_layer(),
        "models": [model_of("m", layers, 2)],
        "logs": [log_of(f"{folder}/log.jsonl", "m", 8) for folder in ("old", "new")],
    }
    page = ReportPage(html(document).decode())
    assert [row[0] for row in page.tables["Load of each layer"][1:]] == [
        "layer 3 of old/log.jsonl",
        "layer 3 of new/log.jsonl",
    ]
