"""The report of an inspection: its text, that it is self-contained, how it is written."""

from __future__ import annotations

import copy
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")

from report_documents import many_layers, one_layer, two_models
from report_page import ReportPage
from tessera.tools.report import require, write_html, write_pictures

ADVICE = "Recommended block size for each batch size"
BLOCKS = "Blocks of a batch, in the mean over batches; ✓ marks the recommended block size"
PADDING = "Padding, and cost over the cheapest; ✓ marks the recommended block size"
LOAD = "Load of each layer"
PAIRS = "Pairs of every expert and layer"
RANKS = "Load of the busiest rank over the mean, on the second half of the tokens"
READING = (
    "Every placement is judged on the second half of the tokens, 500 of 1,000. Balanced: by the "
    "loads of the first half. In hindsight: balanced by the loads of the tokens that judge."
)
REPEATED = "Runs of equal rows, the first ten of each layer"


def written(document: Any, folder: Path) -> str:
    write_html(document, folder / "report.html")
    assert [one.name for one in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


def read(document: Any, folder: Path) -> ReportPage:
    return ReportPage(written(document, folder))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ReportPage:
    return read(one_layer(), tmp_path_factory.mktemp("one_layer"))


def test_findings_of_one_layer(page: ReportPage) -> None:
    document = one_layer()
    layer = document["models"][0]["layers"][0]
    counts = layer["expert_counts"]
    hottest = counts.index(max(counts))
    hot = page.definitions["Hot experts"]
    assert hot.startswith(
        f"Expert {hottest} takes {max(counts) / 4000:.1%} of all pairs of a token and an expert, "
        f"{max(counts) * 64 / 4000:.2f}× the mean."
    )
    others = [i for i, count in enumerate(counts) if count >= 125 and i != hottest]
    assert sorted(map(int, re.findall(r"(\d+) \(", hot))) == others
    assert page.definitions["Dead experts"] == "2 experts with no token: 10, 11."
    assert page.definitions["Repeated rows"] == (
        "128 rows of 1,128 (11%) stand in runs of equal rows, as an engine's warm-up makes them. "
        "They are not traffic, and are left out of all figures. "
        "With them, expert 7 would seem to take 12.8× the mean."
    )
    row = next(one for one in layer["ranks"] if one["num_ranks"] == 8)
    held_out, of_all = row["held_out"], row["all_tokens"]
    assert page.definitions["Expert parallelism"] == (
        "On the second half of the tokens the busiest of 8 ranks has "
        f"{held_out['contiguous']:.2f}× the mean load with contiguous placement, "
        f"{held_out['balanced']:.2f}× with a balanced one made by the first half, and "
        f"{held_out['in_hindsight']:.2f}× with one balanced in hindsight, by the same tokens. "
        "Balanced placement is worse than contiguous on 2 ranks. "
        f"On all tokens it is {of_all['contiguous']:.2f}× with contiguous placement and "
        f"{of_all['in_hindsight']:.2f}× in hindsight."
    )


def test_the_finding_on_block_sizes_tells_each_run_of_batch_sizes(page: ReportPage) -> None:
    text = page.definitions["Block size"]
    assert text.startswith("Use block size 8 for batches of 1 to 64 tokens, 16 for 128, 32 for 256")
    told = dict[int, int]()
    for size, first, last in re.findall(
        r"(\d+) for (?:batches of )?([\d,]+)(?: to ([\d,]+))?", text
    ):
        low, high = (int(one.replace(",", "")) for one in (first, last or first))
        told |= {1 << i: int(size) for i in range(17) if low <= 1 << i <= high}
    model = one_layer()["models"][0]
    assert told == {one["batch_size"]: one["block_size"] for one in model["advice"]}
    batch = model["layers"][0]["batches"][6]
    assert (
        f"a batch of 64 tokens gives each of its {batch['active_experts']:.1f} active experts "
        f"{256 / batch['active_experts']:.1f} pairs: with block size 8, "
        f"{batch['blocks'][0]['padding_share']:.0%} of the slots are padding; with 256, "
        f"{batch['blocks'][-1]['padding_share']:.0%}, at "
        f"{model['advice'][6]['costs'][-1]['relative_cost']:.2f}× the modelled cost."
    ) in text


def test_block_sizes_of_the_same_cost_are_told(tmp_path: Path) -> None:
    document = one_layer()
    assert "cost the same" not in read(document, tmp_path).definitions["Block size"]
    costs = document["models"][0]["advice"][6]["costs"]
    for cost, relative in zip(costs, [1.0, 1.019, 1.03, 1.01, 2.0, 3.0], strict=True):
        cost["relative_cost"] = relative
    text = read(document, tmp_path).definitions["Block size"]
    assert text.endswith(" There 16 and 64 cost the same as 8, within 2%.")
    costs[2]["relative_cost"] = 0.99
    text = read(document, tmp_path).definitions["Block size"]
    assert text.endswith(" There 16, 32 and 64 cost the same as 8, within 2%.")


def test_the_first_run_may_be_of_one_token(tmp_path: Path) -> None:
    document = one_layer()
    document["models"][0]["advice"][0]["block_size"] = 16
    text = read(document, tmp_path).definitions["Block size"]
    assert text.startswith("Use block size 16 for batches of 1 token, 8 for 2 to 64, 16 for 128,")
    assert "a batch of 1 token gives each of its 4 active experts 1 pair:" in text


def test_the_advice_of_every_batch_size_with_its_neighbours(page: ReportPage) -> None:
    model = one_layer()["models"][0]
    rows = page.tables[ADVICE][1:]
    assert len(rows) == len(model["advice"]) == 17
    for row, one, batch in zip(rows, model["advice"], model["layers"][0]["batches"], strict=True):
        mark = "≈ " if batch["extrapolated"] else ""
        costs = [f"{cost['relative_cost']:.2f}× at {cost['block_size']}" for cost in one["costs"]]
        place = [cost["block_size"] for cost in one["costs"]].index(one["block_size"])
        smaller, larger = ["none", *costs, "none"][place : place + 3 : 2]
        assert row[:2] == [f"{mark}{one['batch_size']:,}", str(one["block_size"])]
        assert row[3:5] == [smaller, larger]
        shown = float(row[2].rstrip("%")) / 100
        assert shown == pytest.approx(one["padding_share"], abs=0.0051)
        assert float(row[5].replace(",", "")) == pytest.approx(batch["active_experts"], abs=0.51)
    assert rows[0][5:] == ["4", "1"]
    assert rows[-1][6] == "4,228"  # 65,536 * 4 pairs over 62 experts


def test_padding_of_every_block_size(page: ReportPage) -> None:
    model = one_layer()["models"][0]
    head, *rows = page.tables[PADDING]
    assert head[1:] == [f"block {size}" for size in (8, 16, 32, 64, 128, 256)]
    for row, one, batch in zip(rows, model["advice"], model["layers"][0]["batches"], strict=True):
        for cell, block, cost in zip(row[1:], batch["blocks"], one["costs"], strict=True):
            assert ("✓" in cell) == (block["block_size"] == one["block_size"])
            share, relative = cell.removeprefix("✓ ").split()
            assert float(share.rstrip("%")) == pytest.approx(100 * block["padding_share"], abs=0.51)
            assert float(relative.rstrip("×")) == pytest.approx(cost["relative_cost"], rel=0.01)


def test_blocks_of_every_block_size(page: ReportPage) -> None:
    model = one_layer()["models"][0]
    _, *rows = page.tables[BLOCKS]
    for row, one, batch in zip(rows, model["advice"], model["layers"][0]["batches"], strict=True):
        for cell, block in zip(row[1:], batch["blocks"], strict=True):
            assert ("✓" in cell) == (block["block_size"] == one["block_size"])
            shown = float(cell.removeprefix("✓ ").replace(",", ""))
            assert shown == pytest.approx(block["num_blocks"], abs=0.051, rel=0.01)


def test_loads_ranks_and_repeated_rows(page: ReportPage) -> None:
    layer = one_layer()["models"][0]["layers"][0]
    (row,) = page.tables[LOAD][1:]
    load = layer["load"]
    listed = ", ".join(f"{one['expert']} {one['over_mean']:.2f}×" for one in load["hot_experts"])
    assert row == [
        "layer 0",
        "1,000",
        f"{load['max_over_mean']:.2f}×",
        f"{load['entropy_bits']:.2f} of 6.00",
        f"{load['gini']:.2f}",
        listed,
        "10, 11",
    ]
    pairs = [[str(i), str(count)] for i, count in enumerate(layer["expert_counts"])]
    assert page.tables[PAIRS][1:] == pairs
    assert page.tables[RANKS][1:] == [
        [str(one["num_ranks"])]
        + [f"{one['held_out'][name]:.2f}×" for name in ("contiguous", "balanced", "in_hindsight")]
        for one in layer["ranks"]
    ]
    assert page.tables[RANKS][0] == ["Ranks", "contiguous", "balanced", "in hindsight"]
    assert READING in page.text
    assert page.tables[REPEATED][1:] == [["layer 0", "0", "128", "7, 6, 5, 4"]]


def test_figures_say_what_they_show(page: ReportPage) -> None:
    model = one_layer()["models"][0]
    layer = model["layers"][0]
    padding, cost, load, by_load, heat, ranks, _, _ = page.drawings
    share = layer["batches"][8]["blocks"]
    assert (
        f"Batches of 256: {share[0]['padding_share']:.0%} at block size 8, "
        f"{share[5]['padding_share']:.0%} at 256, {share[2]['padding_share']:.0%} at the "
        "recommended 32."
    ) in padding
    assert f"{model['advice'][8]['costs'][5]['relative_cost']:.2f}× at 256" in cost
    assert "1.00× at the recommended 32" in cost
    hottest = layer["load"]["hot_experts"][0]
    assert f"Hot experts: {hottest['expert']} ({hottest['over_mean']:.2f}×)" in load
    assert "Dead experts: 10, 11." in load
    eighth = sum(sorted(layer["expert_counts"])[-8:]) / 4000
    assert f"The hottest 8 of 64 experts take {eighth:.0%} of all pairs." in by_load
    assert f"layer 0: at most {layer['load']['max_over_mean']:.2f}×, 2 dead" in heat
    assert "over the mean, on the second half of the tokens." in ranks
    row = layer["ranks"][2]["held_out"]
    assert (
        f"8 ranks: contiguous {row['contiguous']:.2f}×, balanced {row['balanced']:.2f}×, "
        f"in hindsight {row['in_hindsight']:.2f}×;"
    ) in ranks


def test_the_method_and_its_limits(page: ReportPage) -> None:
    document = one_layer()
    assert document["cost_model"]["formula"] in page.text
    assert "weight_rows = 40: made up for this test." in page.text
    assert document["limits"][0] in page.text
    assert "Tessera 0.1.0" in page.text


def test_bad_lines_and_guessed_experts_are_told(tmp_path: Path) -> None:
    document = one_layer()
    log = document["logs"][0]
    log |= {"num_skipped": 2, "skipped": ["routing.jsonl:7: layer: expected an integer, got 'x'"]}
    log["num_experts_source"] = "largest id + 1"
    document["models"][0]["layers"][0]["num_invalid_ids"] = 3
    page = read(document, tmp_path)
    assert "2 bad lines skipped" in page.text
    assert log["skipped"][0] in page.text
    assert "64 experts (by largest id + 1)" in page.text
    assert page.definitions["Invalid ids"].startswith("3 ids outside the experts")


def test_the_page_stands_alone(page: ReportPage) -> None:
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "img", "iframe", "object", "image"}
    assert [one for one in page.headings if one.startswith("h1")] == ["h1 Routing of maker/model-1"]


def test_text_from_logs_is_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\" ' & {{ 7 * 7 }}"
    document = one_layer(model_id=name, file="logs/a\"b'<i>.jsonl")
    document["models"][0]["layers"][0]["layer"] = None
    page = read(document, tmp_path)
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert f"h1 Routing of {name}" in page.headings
    assert "a\"b'<i>.jsonl" in page.text
    assert page.tables[LOAD][1][0] == "a\"b'<i>.jsonl"
    for path in write_pictures(document, tmp_path / "pictures"):
        ET.parse(path)


def test_two_models_and_layers_of_two_logs(tmp_path: Path) -> None:
    document = two_models()
    text = written(document, tmp_path)
    assert text.count("Recommended block size for each batch size") == 2
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == [
        "m/a",
        "WITH_A_LONG_NAME_wwww.npy",
        "Method and limits",
    ]
    assert "In layer 0, expert" in text
    assert "In layer 12, no expert takes twice the mean load; the most loaded" in text
    assert '<th scope="row">WITH_A_LONG_NAME_wwww.npy</th>' in text
    assert len(set(re.findall(r'id="([^"]+)"', text))) == len(re.findall(r'id="([^"]+)"', text))
    # Both layers count, each with its blocks.
    pairs = slots = 0.0
    for layer in document["models"][0]["layers"]:
        block = layer["batches"][4]["blocks"][3]
        slots += block["num_blocks"] * 64
        pairs += 16 * 4
    assert f"<td>{1 - pairs / slots:.0%} <span" in text


def test_a_layer_number_in_two_logs_is_told_with_its_file(tmp_path: Path) -> None:
    document = two_models()
    document["models"][0]["layers"][1]["layer"] = 0
    text = written(document, tmp_path)
    assert "layer 0 of a.jsonl" in text
    assert "layer 0 of b.jsonl" in text


def test_one_expert_has_no_ranks(tmp_path: Path) -> None:
    document = one_layer()
    document["models"][0]["layers"][0] |= {"ranks": [], "num_held_out": 0}
    page = read(document, tmp_path)
    assert "Expert parallelism" not in page.definitions
    assert len(page.drawings) == 7
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_sizes(tmp_path: Path) -> None:
    document = many_layers()
    write_html(one_layer(), tmp_path / "one.html")
    write_html(document, tmp_path / "many.html")
    assert (tmp_path / "one.html").stat().st_size < 100_000
    assert (tmp_path / "many.html").stat().st_size < 1_000_000
    page = ReportPage((tmp_path / "many.html").read_text(encoding="utf-8"))
    layers = document["models"][0]["layers"]
    worst = max(layers, key=lambda layer: layer["load"]["max_over_mean"])
    assert f"Most uneven is layer {worst['layer']}: expert" in page.definitions["Hot experts"]
    assert len(page.tables[PAIRS]) == 513
    assert page.tables[LOAD][1][5].endswith("and 6 more")


def test_the_heat_map_has_every_cell_in_its_class(tmp_path: Path) -> None:
    document = one_layer()
    layer = document["models"][0]["layers"][0]
    layer["expert_counts"] = [0, 10, 20, 40, 70, 150, 300, 430] + [250] * 12
    layer["expert_counts"] += [0] * (64 - len(layer["expert_counts"]))
    write_pictures(document, tmp_path)
    text = (tmp_path / "load_over_layers.svg").read_text(encoding="utf-8")
    paths = re.findall(r'class="cells cells-(\d)" d="([^"]*)"', text)
    mean = sum(layer["expert_counts"]) / 64
    edges = (0.25, 0.5, 1.0, 2.0, 4.0)
    found = dict[int, int]()
    for heat, commands in paths:
        for first, length in re.findall(r"M(\d+) 0\.5h(\d+)", commands):
            found |= {int(first) + i: int(heat) for i in range(int(length))}
    assert found == {
        i: 1 + sum(count / mean >= edge for edge in edges) if count else 0
        for i, count in enumerate(layer["expert_counts"])
    }
    assert set(found.values()) == set(range(7))


def test_pictures_are_whole_files_named_by_what_they_show(tmp_path: Path) -> None:
    paths = write_pictures(one_layer(), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "padding.svg",
        "cost.svg",
        "load.svg",
        "load_sorted.svg",
        "load_over_layers.svg",
        "ranks.svg",
        "drift_ranks.svg",
        "drift.svg",
    ]
    for path in paths:
        root = ET.parse(path).getroot()
        assert root.get("aria-label")
        text = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert 'class="ground"' in text
        assert "href" not in text
    names = [path.name for path in write_pictures(two_models(), tmp_path)]
    assert "0_m-a_load_layer_12.svg" in names
    assert "1_with-a-long-name-wwww.npy_load.svg" in names
    assert len(set(names)) == len(names)


def test_a_ring_marks_each_recommended_block_size(tmp_path: Path) -> None:
    document = one_layer()
    write_pictures(document, tmp_path)
    text = (tmp_path / "padding.svg").read_text(encoding="utf-8")
    places = sorted({float(x) for x in re.findall(r"M([\d.]+) [\d.]+m-8 0a8", text)})
    drawn = [one for one in document["models"][0]["advice"] if one["batch_size"] in (1, 256, 4096)]
    ticks = dict(re.findall(r'<text class="middle" x="([\d.]+)" y="269">(\d+)<', text))
    recommended = {one["block_size"] for one in drawn} | {256}  # of 65,536
    assert {int(ticks[f"{place:g}"]) for place in places} == recommended


def test_the_same_document_makes_the_same_files(tmp_path: Path) -> None:
    document = two_models()
    before = copy.deepcopy(document)
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_pictures(document, folder)
        write_html(document, folder / "report.html")
    assert document == before
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_html(one_layer(), path)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_without_jinja2_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for call in (require, lambda: write_html(one_layer(), tmp_path / "report.html")):
        with pytest.raises(ValueError, match=r"pip install jinja2, or .*'\.\[report\]'"):
            call()
    assert list(tmp_path.iterdir()) == []
