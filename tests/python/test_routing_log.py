"""The reader of routing logs: recorded ones, broken ones, and random bytes."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera
from recorded_logs import recorded
from tessera.routing_log import (
    MAX_LINE_BYTES,
    RoutingLogError,
    RoutingLogReader,
    bounded_lines,
    parse_routing_log,
    read_routing_log,
)

META: dict[str, Any] = {"type": "meta", "model_id": "m", "num_experts": 8}


def route(ids: object, layer: object = 0) -> dict[str, Any]:
    return {"type": "route", "layer": layer, "topk_ids": ids}


def lines(*records: object) -> list[bytes]:
    return [json.dumps(record).encode() + b"\n" for record in records]


@pytest.mark.parametrize(
    ("name", "model", "layer", "shape", "declared", "most"),
    [
        ("olmoe-1b-7b_layer0", "allenai/OLMoE-1B-7B-0924", 0, (6519, 8), 64, (6, 4889)),
        ("qwen1.5-moe-a2.7b_layer0", "Qwen/Qwen1.5-MoE-A2.7B-Chat", 0, (12805, 4), None, None),
        ("qwen1.5-moe-a2.7b_layer12", "Qwen/Qwen1.5-MoE-A2.7B-Chat", 12, (12805, 4), None, None),
    ],
)
def test_recorded_logs(
    name: str,
    model: str,
    layer: int,
    shape: tuple[int, int],
    declared: int | None,
    most: tuple[int, int] | None,
) -> None:
    log = read_routing_log(recorded(f"{name}.jsonl"))
    assert (log.model_id, log.num_experts, list(log.layers)) == (model, declared, [layer])
    topk_ids = log.layers[layer]
    assert topk_ids.shape == shape
    assert topk_ids.dtype == np.int32
    num_experts = declared or int(topk_ids.max()) + 1
    counts = np.empty(num_experts, np.int32)
    options: dict[str, Any] = {"block_size": 128, "num_experts": num_experts}
    found = tessera.align_block_size(topk_ids, expert_counts=counts, **options)
    assert not tessera.contract_violations(topk_ids, found, expert_counts=counts, **options)
    if most is not None:
        assert (int(counts.argmax()), int(counts.max())) == most


def test_layers_keep_the_order_of_the_file() -> None:
    log = parse_routing_log(
        lines(META, route([1, 2], 5), route([7], 3), route([3, 4], 5)), "log.jsonl"
    )
    assert {layer: ids.tolist() for layer, ids in log.layers.items()} == {
        5: [[1, 2], [3, 4]],
        3: [[7]],
    }
    assert list(log.layers) == [5, 3]


BROKEN: list[tuple[list[bytes], str]] = [
    ([], "log: expected a routing log, got an empty file"),
    (lines(META), "log:1: expected a line of type 'route', got the file's end"),
    (
        lines(META, route([1]), META),
        "log:3: type: expected 'route', got \"meta\": a second log begins here",
    ),
    (
        lines(META, {"type": "meta", "model_id": "other"}),
        "log:2: type: expected 'route', got \"meta\": a second log begins here, of another model",
    ),
    (lines(META, {"kind": "event"}), 'log:2: topk_ids: missing in a line that has "kind"'),
    (lines(META, [1]), "log:2: expected a JSON object, got [1]"),
    (lines(META, {"type": "route", "layer": 0}), "log:2: topk_ids: missing"),
    (lines(META, {"type": "route", "topk_ids": [1]}), "log:2: layer: missing"),
    (
        lines(META, route([1], -1)),
        "log:2: layer: expected an integer in [0, 2147483647] or a name, got -1",
    ),
    (
        lines(META, route([1], "")),
        "log:2: layer: expected an integer in [0, 2147483647] or a name, ",
    ),
    (lines(META, route([])), "log:2: topk_ids: expected a list of integers, got []"),
    (lines(META, route(3)), "log:2: topk_ids: expected a list of integers, got 3"),
    (
        lines(META, route([1, 2]), route([3, 3])),
        "log:3: topk_ids: expected different experts, got [3, 3]",
    ),
    (
        lines(META, route([1, 8, 10])),
        "log:2: topk_ids: expected integers in [0, 8), got 8: --experts 11 if they are experts, "
        "--zero-experts if ids from 8 on stand for no expert",
    ),
    (lines(META, route([2, 2]), route([9])), "log:2: topk_ids: expected different experts, got "),
    (lines(META, route([-2])), "log:2: topk_ids: expected integers in [0, 8), got -2"),
    (lines(META, route([1.5])), "log:2: topk_ids: expected integers in [0, 8), got 1.5"),
    (lines(META, route([[1], [9]])), "log:2: topk_ids[1]: expected integers in [0, 8), got 9"),
    (lines(META, route([True])), "log:2: topk_ids: expected integers in [0, 8), got true"),
    (
        lines({"type": "meta"}, route([2**16])),
        "log:2: topk_ids: expected integers in [0, 65536), got 65536",
    ),
    (
        lines({"type": "meta", "num_experts": 0}),
        "log:1: num_experts: expected an integer in [1, 65536], got 0",
    ),
    (lines({"type": "meta", "model_id": 7}), "log:1: model_id: expected text, got 7"),
    ([*lines(META), b'{"type": "route", \n'], "log:2: expected JSON, got "),
    (
        [*lines(META), b'{"type": "route", "layer": 0, "topk_'],
        "log:2: expected JSON, got Unterminated string starting at at column 31; the file ends in "
        "this line: it may have been cut off",
    ),
    (
        [*lines(META), b"{" + b" " * MAX_LINE_BYTES],
        "log:2: expected a line of at most 4194304 bytes, got a longer one",
    ),
    (lines(META, route([1] * 1025)), "log:2: topk_ids: expected at most 1024 integers, got 1025"),
    (
        lines(META, *(route([1], layer) for layer in range(1025))),
        "log:1026: layer: expected at most 1024 layers, got more",
    ),
    (lines(META, route([1], 2**31)), "log:2: layer: expected an integer in [0, 2147483647] or a "),
    ([*lines(META), b'{"type": "\xff"}\n'], "log:2: expected UTF-8, got byte 0xff"),
    ([b"[" * 100_000], "log:1: expected a JSON object, got one nested too deeply"),
    ([b'{"type": ' + b"9" * 5000 + b"}"], "log:1: "),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_broken_logs(content: list[bytes], message: str) -> None:
    with pytest.raises(RoutingLogError) as caught:
        parse_routing_log(content, "log")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


LOG_FORMS: list[tuple[list[bytes], dict[int | str, list[list[int]]]]] = [
    (lines(route([1, 2]), route([3, 4])), {0: [[1, 2], [3, 4]]}),
    (lines(META, route([1.0, 2.0], "model.layers.0.mlp")), {"model.layers.0.mlp": [[1, 2]]}),
    (lines(META, route([1], "3")), {3: [[1]]}),
    (lines(META, route([[1, 2], [3, 4]])), {0: [[1, 2], [3, 4]]}),
    (lines({"layer": 2, "topk_experts": [[1, 2], [3, 4]]}), {2: [[1, 2], [3, 4]]}),
    (lines(META, {"type": "route", "layers": [[1, 2], [3, 4]]}), {0: [[1, 2]], 1: [[3, 4]]}),
    (lines(META, route([1]), route([2, 3]), route([4])), {0: [[1, -1], [2, 3], [4, -1]]}),
    (lines(META, route([-1, -1]), route([3, -1])), {0: [[-1, -1], [3, -1]]}),
    ([b'{"layer": 0, "topk_ids": [1], "topk_weights": [NaN]}\r\n'], {0: [[1]]}),
]


@pytest.mark.parametrize(("content", "layers"), LOG_FORMS)
def test_forms_of_lines(content: list[bytes], layers: dict[int | str, list[list[int]]]) -> None:
    for end in ([], [b"\n", b"\r\n"]):
        log = parse_routing_log([b"\xef\xbb\xbf" + content[0], *content[1:], *end], "log")
        assert {layer: ids.tolist() for layer, ids in log.layers.items()} == layers


def test_ids_beyond_the_experts_that_stand_for_none() -> None:
    reader = RoutingLogReader(lines(META, route([1, 8])), "log", zero_experts=True)
    assert [ids.tolist() for _, ids in reader.pieces()] == [[[1, -1]]]


def test_rows_of_different_lengths_are_told() -> None:
    reader = RoutingLogReader(lines(META, route([1]), route([2, 3, 4]), route([5, 6])), "log")
    assert [ids.tolist() for _, ids in reader.pieces()] == [[[1]], [[2, 3, 4], [5, 6, -1]]]
    assert (reader.least_top_k, reader.num_padding) == ({0: 1}, {0: 1})


def skimmed(content: list[bytes], **options: Any) -> tuple[RoutingLogReader, list[list[int]]]:
    """A reader that skips bad lines, at its end, and the rows that it gave."""
    reader = RoutingLogReader(content, "log", skip_bad_lines=True, **options)
    return reader, [row for _, ids in reader.pieces() for row in ids.tolist()]


def test_bad_lines_are_skipped_and_counted() -> None:
    good = lines(route([1, 2]), route([3, 4]))
    bad = [*lines(route([9, 7]), route([1, 1]), {"type": "route"}, META), b"{", b"\xff\n"]
    reader, rows = skimmed([*lines(META), good[0], *bad, *bad, good[1]])
    assert rows == [[1, 2], [3, 4]]
    assert (reader.model_id, reader.num_experts) == ("m", 8)
    assert (reader.num_lines, reader.num_skipped) == (15, 12)
    assert len(reader.skipped) == 10
    assert reader.skipped[0].startswith("log:3: topk_ids: expected integers in [0, 8), got 9")
    assert reader.skipped[1] == "log:5: layer: missing"


def test_a_skipped_first_line() -> None:
    reader, rows = skimmed([b"# comment\n", *lines(META, route([9]), route([1]))])
    assert (reader.model_id, reader.num_experts, rows) == ("m", 8, [[1]])
    assert reader.num_skipped == 2


def test_nothing_is_left_after_skipping() -> None:
    with pytest.raises(RoutingLogError) as caught:
        skimmed([b"a,b\n", b"1,2\n"])
    assert str(caught.value).startswith(
        "log:2: expected a line of type 'route', got the file's end; skipped log:1: expected JSON, "
    )


def test_a_second_log_of_another_model_is_never_skipped() -> None:
    other = {"type": "meta", "model_id": "other", "num_experts": 8}
    with pytest.raises(RoutingLogError, match=r"log:3: .* begins here, of another"):
        skimmed(lines(META, route([1]), other, route([2])))


def test_a_given_number_of_experts_overrides_the_log() -> None:
    reader, rows = skimmed(lines(META, route([1]), route([2]), route([8])), num_experts=2)
    assert (rows, reader.num_experts, reader.num_skipped) == ([[1]], 8, 2)
    reader, rows = skimmed(lines(META, route([11])), num_experts=12)
    assert rows == [[11]]


def test_pieces_join_to_the_whole_log() -> None:
    rows = np.arange(2 * 150_000, dtype=np.int32).reshape(-1, 2) % 251
    assert (rows[:, 0] != rows[:, 1]).all()
    content = lines({"type": "meta"}, *(route(row, 7) for row in rows.tolist()))
    pieces = list(RoutingLogReader(content, "log").pieces())
    assert len(pieces) > 1
    assert {layer for layer, _ in pieces} == {7}
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in pieces]), rows)


def peak_bytes_of_reading(num_lines: int) -> int:
    (line,) = lines(route(list(range(512))))
    content = itertools.chain(lines({"type": "meta"}), itertools.repeat(line, num_lines))
    tracemalloc.start()
    try:
        num_rows = sum(len(ids) for _, ids in RoutingLogReader(content, "log").pieces())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_rows == num_lines
    return peak


def test_memory_does_not_depend_on_the_length() -> None:
    short = peak_bytes_of_reading(1_000)
    assert peak_bytes_of_reading(8_000) < 1.2 * short


def test_long_lines_are_not_held() -> None:
    class OneLine(io.BytesIO):
        """A line of 64 MiB, of which a reader may request only little at once."""

        left = 64 << 20

        def readline(self, size: int | None = -1, /) -> bytes:
            assert size is not None and 0 < size <= MAX_LINE_BYTES + 1
            count = min(size, self.left)
            self.left -= count
            return b" " * count

    found = [len(line) for line in bounded_lines(OneLine())]
    assert found == [MAX_LINE_BYTES + 1]


def test_progress_is_the_bytes_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join(lines(META, *[route([1])] * 60_000)))
    seen: list[int] = []
    read_routing_log(log, seen.append)
    assert sum(seen) == log.stat().st_size
    assert len(seen) > 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RoutingLogError, match="Is a directory"):
        read_routing_log(tmp_path)
    with pytest.raises(RoutingLogError, match="No such file"):
        read_routing_log(tmp_path / "absent.jsonl")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=6)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["meta", "route"]) | VALUES,
        "layer": st.integers(0, 3) | VALUES,
        "topk_ids": st.lists(st.integers(0, 9), min_size=1, max_size=3) | VALUES,
        "num_experts": st.integers(1, 12) | VALUES,
        "model_id": VALUES,
    },
)
LINES = st.lists(
    st.binary(max_size=20)
    | VALUES.map(json.dumps).map(str.encode)
    | RECORDS.map(json.dumps).map(str.encode)
)


@settings(max_examples=300, deadline=None)
@given(LINES, st.booleans())
def test_any_bytes_are_a_log_or_an_error(content: list[bytes], begins_well: bool) -> None:
    if begins_well:
        content = [*lines(META, route([1, 2])), *content]
    try:
        log = parse_routing_log(content, "log")
    except RoutingLogError as error:
        assert str(error).startswith("log:")
        return
    for ids in log.layers.values():
        assert ids.dtype == np.int32
        assert ids.min() >= -1
        assert log.num_experts is None or ids.max() < log.num_experts
