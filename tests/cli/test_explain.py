"""The implementations of every op, in `tessera info`, its `--explain`, and `tessera.explain`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import tessera
from tessera._op import Op, op_names
from tessera.cli.main import main

Capture = pytest.CaptureFixture[str]

SHAPES: dict[str, dict[str, Any]] = {
    "align_block_size": {"N": 64, "num_experts": 8, "block_size": 16},
    "batched_align_block_size": {"n": 8, "max_tokens_per_batch": 64, "block_size": 16},
    "lora_align_block_size": {
        **{"N": 64, "num_experts": 8, "max_loras": 3, "block_size": 16, "top_k": 4}
    },
    "moe_permute": {
        **{"T": 16, "H": 64, "k": 2, "num_experts": 8, "block_size": 4, "dtype": "float16"}
    },
    "moe_sum": {"T": 16, "k": 8, "H": 7168, "dtype": "bfloat16"},
    "moe_unpermute": {"M": 128, "H": 7168, "T": 16, "k": 8, "dtype": "bfloat16"},
    "quantize_fp8": {"T": 16, "H": 7168, "dtype": "bfloat16"},
    "fused_experts": {"T": 16, "H": 7168, "E": 8, "F": 2048, "k": 2, "dtype": "bfloat16"},
    "select_experts": {"T": 16, "E": 256, "top_k": 8, "dtype": "bfloat16"},
    "fused_moe": {"T": 16, "H": 7168, "E": 8, "F": 2048, "top_k": 2, "dtype": "bfloat16"},
    "select_and_align": {"T": 16, "E": 256, "top_k": 8, "block_size": 16, "dtype": "bfloat16"},
}


def test_every_op_has_a_shape_here() -> None:
    assert list(SHAPES) == op_names()


@pytest.mark.parametrize("op", SHAPES)
def test_every_op(op: str, capsys: Capture) -> None:
    found = tessera.explain(op, **SHAPES[op])
    # The first one that this machine can run.
    first = next(one.name for one in found if not one.refusal)
    assert [one.name for one in found if one.selected] == [first]
    assert found[-1].name == "cpu/reference"
    words = [f"{name}={value}" for name, value in SHAPES[op].items()]
    assert main(["info", "--explain", op, *words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    lines = [line.strip().split(maxsplit=1) for line in out.splitlines()]
    assert lines[1] == ["op", op]
    assert lines[2][1].split(", ") == [f"{name} {value}" for name, value in SHAPES[op].items()]
    assert [name for name, _ in lines[3:]] == [one.name for one in found]
    assert dict(lines[3:])[first].startswith("first choice")
    assert main(["info", "--explain", op, *words, "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["op"], document["shape"]) == (op, SHAPES[op])
    assert [one["name"] for one in document["implementations"]] == [one.name for one in found]
    assert not any("plan" in one for one in document["implementations"])


@pytest.mark.parametrize("op", SHAPES)
def test_the_help_has_an_example_for_every_op_that_needs_a_data_type(
    op: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit):
        main(["info", "--help"])
    words = capsys.readouterr().out.split()
    assert (op in words) == ("dtype" in SHAPES[op] or op == "align_block_size")


def test_the_help_says_which_op_the_short_form_leaves_out(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["info", "--help"])
    assert (
        "Three integers without an op's name, such as 8192 64 128, are num_ids, num_experts and "
        "block_size of align_block_size"
    ) in " ".join(capsys.readouterr().out.split())


def test_the_short_form_is_align_block_size() -> None:
    expected = tessera.explain("align_block_size", N=9, num_experts=3, block_size=4)
    assert tessera.explain(9, 3, 4) == expected
    assert tessera.explain(num_ids=9, num_experts=3, block_size=4, pad_sorted_ids=True) == expected


def test_data_types_of_arrays() -> None:
    shape = {"T": 1, "k": 1, "H": 1}
    dtype: Any
    for dtype in ("float16", np.dtype("float16"), np.float16, "f2", "<f2", "half"):
        assert tessera.explain("moe_sum", **shape, dtype=dtype)
    for dtype, name in [
        (float, "float64"),
        ("f8", "float64"),
        (">f4", ">f4"),
        (None, "None"),
        ("a,,b", "a,,b"),
        ("banana", "banana"),
        (3, "3"),
    ]:
        with pytest.raises(TypeError, match=f"^align_block_size: dtype: expected .*, got {name}$"):
            tessera.explain("align_block_size", **SHAPES["align_block_size"], dtype=dtype)
    torch = pytest.importorskip("torch")
    assert tessera.explain("moe_sum", **shape, dtype=torch.bfloat16)
    assert tessera.explain("align_block_size", **SHAPES["align_block_size"], dtype=torch.int64)


@pytest.mark.parametrize("op", SHAPES)
def test_a_missing_value_is_named(op: str) -> None:
    optional = {"block_size"} if op == "moe_permute" else set()
    for name in SHAPES[op]:
        if name in optional:
            continue
        shape = {key: value for key, value in SHAPES[op].items() if key != name}
        more = f"; dtype is one of {', '.join(Op(op).inputs[0].dtypes)}" if name == "dtype" else ""
        with pytest.raises(TypeError, match=f"^{op}: {name}: expected a value, got none{more}$"):
            tessera.explain(op, **shape)
    everything = ", ".join(name for name in SHAPES[op] if name not in optional)
    with pytest.raises(TypeError) as caught:
        tessera.explain(op)
    named = str(caught.value).removeprefix(f"{op}: ").partition(": expected a value, got none")[0]
    assert sorted(named.split(", ")) == sorted(everything.split(", "))


@pytest.mark.parametrize(
    ("kind", "message", "op", "changes"),
    [
        (ValueError, "explain: op: expected one of align_block_size, batched_", "moe", {}),
        (
            TypeError,
            "moe_sum: expected values of T, k, H, dtype, got one of n",
            "moe_sum",
            {"n": 1},
        ),
        (TypeError, "moe_sum: T: expected an integer, got float", "moe_sum", {"T": 1.0}),
        (
            TypeError,
            "moe_sum: num_threads: expected an integer, got bool",
            "moe_sum",
            {"num_threads": True},
        ),
        (ValueError, "moe_sum: H: expected an integer in [0, 2147483647]", "moe_sum", {"H": -1}),
        (ValueError, "moe_sum: input.shape[1]: expected an integer in [1, ", "moe_sum", {"k": 0}),
        (
            ValueError,
            "moe_sum: T * k * H: expected at most 9223372036854775807, got",
            "moe_sum",
            {"T": 2**31 - 1, "k": 2**31 - 1},
        ),
        (
            TypeError,
            "moe_sum: dtype: expected one of float16, bfloat16, float32, got int8",
            "moe_sum",
            {"dtype": np.dtype(np.int8)},
        ),
        (
            TypeError,
            "moe_sum: dtype: expected one of float16, bfloat16, float32, got \\ud800",
            "moe_sum",
            {"dtype": "\ud800"},  # which UTF-8 cannot hold
        ),
        (
            ValueError,
            "fused_experts: activation: expected one of silu, gelu, gelu_tanh, swigluoai, ",
            "fused_experts",
            {"activation": "\ud800"},
        ),
        (
            ValueError,
            "fused_experts: w2.shape[2]: expected an integer in [1, 2147483647], got 0",
            "fused_experts",
            {"F": 0},
        ),
        (
            TypeError,
            "align_block_size: map_tail: expected a bool, got int",
            "align_block_size",
            {"map_tail": 1},
        ),
        (
            ValueError,
            "lora_align_block_size: max_loras: expected an integer in [1, 1048576], got 0",
            "lora_align_block_size",
            {"max_loras": 0},
        ),
        (
            ValueError,
            "batched_align_block_size: device: expected cpu, cuda or cuda:N, got 'tpu'",
            "batched_align_block_size",
            {"device": "tpu"},
        ),
    ],
)
def test_what_explain_refuses(
    kind: type[Exception], message: str, op: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(kind) as caught:
        tessera.explain(op, **SHAPES.get(op, {}) | changes)
    assert str(caught.value).startswith(message)


def test_a_number_may_have_the_name_of_the_length_that_it_gives(capsys: Capture) -> None:
    shape = {"T": 16, "E": 256, "dtype": "bfloat16"}
    assert tessera.explain("select_experts", **shape, k=8) == tessera.explain(
        "select_experts", **shape, top_k=8
    )
    with pytest.raises(ValueError, match=r"^select_experts: top_k: expected .*, got 0$"):
        tessera.explain("select_experts", **shape, k=0)
    with pytest.raises(TypeError, match=r"^select_experts: top_k: expected one value, got two$"):
        tessera.explain("select_experts", **shape, k=8, top_k=8)
    words = ["info", "--explain", "select_experts", "T=16", "E=256", "k=8", "dtype=bfloat16"]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == {**shape, "top_k": 8}
    assert main([*words, "top_k=8", "--device", "cpu"]) == 2
    assert "--explain: top_k: expected one value, got two\n" in capsys.readouterr().err


def test_the_short_form_refuses_what_it_does_not_take() -> None:
    with pytest.raises(
        TypeError, match=r"^align_block_size: block_size: expected a value, got none"
    ):
        tessera.explain(1, 2)  # type: ignore[call-overload]
    with pytest.raises(
        TypeError, match=r"^align_block_size: expected 3 numbers without a name, got"
    ):
        tessera.explain(1, 2, 3, 4)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^moe_sum: expected no numbers without a name, got 1"):
        tessera.explain("moe_sum", 4)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["1"],
            "--explain: expected three integers, num_ids, num_experts, block_size, got 1, without "
            "num_experts, block_size\n",
        ),
        (
            ["1", "2", "3", "4"],
            "--explain: expected three integers, num_ids, num_experts, block_size, got 4\n",
        ),
        *(
            (
                words,
                "--explain: expected three integers, num_ids, num_experts, block_size, got '1e2'\n",
            )
            for words in (["1", "1e2", "3"], ["1", "2", "3", "1e2"])
        ),
        *(
            (
                words,
                "--explain: expected no NAME=VALUE beside three integers, num_ids, num_experts, "
                f"block_size, got '{words[-1]}'\n",
            )
            for words in (["1", "2", "3", "dtype=int32"], ["1", "2", "block_size=3"], ["1", "="])
        ),
        (
            ["2147483648", "2", "3"],
            "align_block_size: num_ids: expected an integer in [0, 2147483647], got 2147483648\n",
        ),
        *(
            (
                words,
                "--explain: OP: expected one of align_block_size, batched_align_block_size, "
                "lora_align_block_size, moe_permute, moe_sum, moe_unpermute, quantize_fp8, "
                "fused_experts, select_experts, fused_moe, select_and_align, or three integers, "
                f"num_ids, num_experts, block_size, got '{words[0]}'\n",
            )
            for words in (["moe"], ["1e3", "64", "128"], ["N=1", "block_size=2"], ["", "T=1"])
        ),
        (["moe_sum", "T"], "--explain: expected NAME=VALUE, got 'T'"),
        (["moe_sum", "="], "--explain: expected NAME=VALUE, got '='\n"),
        (["moe_sum", "T=1", "=3"], "--explain: expected NAME=VALUE, got '=3'\n"),
        (["moe_sum", "T="], "--explain: T: expected an integer, got ''\n"),
        *(
            (
                ["moe_sum", word],
                "--explain: expected values of T, k, H, dtype, num_threads, got one of "
                f"{word.partition('=')[0]}\n",
            )
            for word in ("tokens=many", "tokens=3", "device=3")
        ),
        (["moe_sum", "T=1", "T=2"], "--explain: T: expected one value, got two"),
        (["moe_sum", "T=x"], "--explain: T: expected an integer, got 'x'"),
        (
            ["moe_sum", "T=1"],
            "moe_sum: k, H, dtype: expected a value, got none; dtype is one of float16, bfloat16, "
            "float32\n",
        ),
        (
            ["align_block_size", "N=1", "num_experts=1", "block_size=1", "map_tail=yes"],
            "--explain: map_tail: expected true or false, got 'yes'",
        ),
        (
            ["align_block_size", "N=1", "num_experts=1", "block_size=1", "map_tail=1"],
            "--explain: map_tail: expected true or false, got '1'",
        ),
        (["moe_sum", "T=true"], "--explain: T: expected an integer, got 'true'"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["info", "--explain", *arguments, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tessera info: {message}")


def test_flags_reach_the_op() -> None:
    """Two groups of such blocks do not fit, one does."""
    assert tessera.explain(2, 1, 2**30 + 1, pad_sorted_ids=False)
    shape = {"N": 2, "num_experts": 1, "block_size": 2**30 + 1}
    for flag in ("filtered_group", "pad_sorted_ids"):
        with pytest.raises(ValueError, match=r"^align_block_size: capacity: expected at most"):
            tessera.explain("align_block_size", **shape, **{flag: True})
    with pytest.raises(ValueError, match=r"^align_block_size: capacity: expected at most"):
        tessera.explain(2, 1, 2**30 + 1, pad_sorted_ids=True)


@pytest.mark.parametrize(
    ("true", "false"), [("true", "false"), ("True", "False"), ("TRUE", "FALSE")]
)
def test_flags_on_the_command_line(capsys: Capture, true: str, false: str) -> None:
    shape = ["N=9", "num_experts=3", "block_size=4", f"filtered_group={true}", f"map_tail={false}"]
    assert main(["info", "--explain", "align_block_size", *shape, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["shape"]
    assert (found["filtered_group"], found["map_tail"]) == (True, False)


def test_info_lists_the_implementations_of_every_op_and_device(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    explain = tessera.explain
    cuda = [
        tessera.Implementation("cuda/wide", "the policy picks another", "", False),
        tessera.Implementation("cuda/narrow", "", "2 CTAs", True),
        tessera.Implementation("cuda/slow", "", "3 CTAs", False),
        tessera.Implementation("cuda/long", "the policy picks another", "", False),
    ]

    def with_a_gpu(op: str, *, device: str, **shape: Any) -> list[tessera.Implementation]:
        on_host = explain(op, **shape)  # refuses a shape that the op does not take
        return cuda if device == "cuda" else on_host

    monkeypatch.setattr(tessera, "explain", with_a_gpu)
    both = [tessera.Backend(name, True, "") for name in ("cpu", "cuda")]
    monkeypatch.setattr(tessera, "backends", lambda: both)
    monkeypatch.delenv("COLUMNS", raising=False)  # nothing is wrapped then, nor filled up
    monkeypatch.setenv("TESSERA_ANYTHING", "1")
    assert main(["info"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    on_gpu = (
        "cuda/narrow first choice: 2 CTAs; cuda/slow can run; "
        "cuda/wide, cuda/long refused: the policy picks another"
    )
    begin = [name for name, _ in lines].index("implementations") + 1
    # The environment follows.
    following = [line for line in lines[begin:] if not line[0].startswith("TESSERA_")]
    listed = [(name, text) for name, text in following]
    assert listed[:2] == [
        ("align_block_size", "cpu/counting_sort first choice; cpu/reference can run"),
        ("align_block_size", on_gpu),
    ]
    assert [name for name, _ in listed[::2]] == op_names()
    assert listed[1::2] == [(name, on_gpu) for name in op_names()]
    assert all("cpu/reference" in text for _, text in listed[::2])

    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["implementations"]
    for op in op_names():
        names = [one["name"] for one in found if one["op"] == op]
        assert names[-5:] == ["cpu/reference", *(one.name for one in cuda)]
