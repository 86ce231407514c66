"""The part of the performance page about whole engines: vLLM with and without Tessera."""

from __future__ import annotations

import json
import statistics
from itertools import chain
from typing import Any

import page_text
from page_text import bullets, origin, table
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.report import figure

TARGET = TARGETS["engine"]
INTRODUCTION = f"""\
## In a running vLLM

`bench/engine/throughput.py` starts vLLM on models with random weights, without Tessera, with its
alignment and router, and with its experts too. Each model has layers of the named model's sizes,
but fewer layers. Here the figures are tokens per second, and **higher is better**. Prefill counts
the tokens of the prompts, decoding the generated ones. A ratio divides Tessera's tokens per second
by those of vLLM alone. No case may be slower than {TARGET["no_case_below"]} times vLLM, and an
engine may start at most {TARGET["start_s"]["must"]} s later.
"""
EXECUTIONS = {
    "decode-graphs": "CUDA graphs for decoding, nothing compiled",
    "default": "vLLM's defaults: compiled, with CUDA graphs",
    "eager": "eager",
}
QUANTIZATIONS = {
    "none": "bfloat16",
    "block": "experts in fp8 with a scale for each block of 128 x 128, all else in bfloat16",
}
NAMES = {"vllm": "vLLM", "router": "alignment and router", "tessera": "all of Tessera"}


def engine_section() -> str:
    """All measurements; empty if there are none."""
    found = [
        json.loads(path.read_text())
        for path in sorted((page_text.RESULTS / "engine").glob("*.json"))
        if path.name != "notes.json"
    ]
    verdicts = Verdicts("engine")
    starts = {_title(result): result for result in found if result["kind"] == "starts"}
    parts = [
        _throughput(result, starts.get(_title(result), result), verdicts)
        for result in found
        if result["kind"] == "throughput"
    ]
    parts += [_serve(result, verdicts) for result in found if result["kind"] == "serve"]
    return "\n".join([INTRODUCTION, *parts]) if parts else ""


def _title(result: dict[str, Any]) -> str:
    return f"{result['model']}, {EXECUTIONS[result['execution']]}"


def _model(result: dict[str, Any]) -> str:
    sizes = result["sizes"]
    return (
        f"{sizes['layers']} of {sizes['layers_of_model']} layers, hidden size "
        f"{sizes['hidden_size']}, {sizes['num_experts']} experts of size "
        f"{sizes['intermediate_size']}, {sizes['top_k']} for each token, "
        f"{QUANTIZATIONS[sizes.get('quantization', 'none')]}. "
        f"vLLM {result['vllm']}.\n"
    )


def _throughput(result: dict[str, Any], starts: dict[str, Any], verdicts: Verdicts) -> str:
    parts = [
        f"### {_title(result)}\n",
        _model(result),
        origin(result),
        _speed_table(result, verdicts),
        bullets([*_starts(starts, verdicts), *_same_tokens(result)], ""),
        *verdicts.explained(),
        *_failures(result),
        *_kernels(result),
        *_values(result),
    ]
    return "\n".join(parts)


def _turns(result: dict[str, Any], variant: str, case: str) -> list[list[float]]:
    rows = (row for row in result["sessions"] if row["variant"] == variant)
    return [row["seconds"][case] for row in rows if case in row["seconds"]]


def _speed_table(result: dict[str, Any], verdicts: Verdicts) -> str:
    rows = []
    for case, about in result["cases"].items():
        turns = {name: _turns(result, name, case) for name in NAMES}
        seconds = {n: statistics.median(chain(*found)) for n, found in turns.items() if found}
        if "vllm" not in seconds:
            continue
        cells = [case, f"{about['tokens'] / seconds['vllm']:.0f}"]
        must = _must(result, case)
        for name in ("router", "tessera"):
            if name not in seconds:
                cells += ["-", "-"]
                continue
            cells += [
                f"{about['tokens'] / seconds[name]:.0f}",
                f"{seconds['vllm'] / seconds[name]:.3f}",
            ]
        verdict = "-"
        if "tessera" in seconds:
            over = seconds["tessera"] / seconds["vllm"]
            name = f"{_title(result)}, {case}"
            verdict = verdicts.of(name, over, {"must": 1 / must}, "time over vLLM's, ")
        medians = [statistics.median(turn) for turn in turns["vllm"]]
        range_of_turns = f"{max(medians) / min(medians):.3f}" if len(medians) > 1 else "-"
        rows.append([*cells, f"{must:.2f}", verdict, range_of_turns])
    header = ["case", "vLLM", "alignment and router", "ratio", "all of Tessera", "ratio"]
    return table([*header, "must", "verdict", "vLLM's turns: slowest / fastest"], rows)


def _must(result: dict[str, Any], case: str) -> float:
    """How many times vLLM's tokens per second a case must have."""
    floor: float = TARGET["no_case_below"]
    if result["execution"] == "eager":
        return floor
    must: float = TARGET["over_vllm"].get(result["model"], {}).get(case, floor)
    return must


def _starts(result: dict[str, Any], verdicts: Verdicts) -> list[str]:
    starts: dict[str, list[float]] = {}
    for row in result["sessions"]:
        if "start_s" in row:
            starts.setdefault(row["variant"], []).append(row["start_s"])
    # The first start of a machine fills its caches, so one start of each says nothing.
    if any(len(starts.get(variant, [])) < 2 for variant in ("vllm", "tessera")):
        return []
    least = {variant: min(seconds) for variant, seconds in starts.items()}
    later = least["tessera"] - least["vllm"]
    verdict = verdicts.of(f"{_title(result)}, start", later, TARGET["start_s"], "seconds later, ")
    shown = ", ".join(f"{NAMES[name]} {figure(seconds)} s" for name, seconds in least.items())
    least_of = ""
    if result["kind"] == "starts":
        least_of = (
            f" (the least of {len(starts['tessera'])} starts of each in turns, on a "
            f"{result['gpu']}, commit {result['commit'][:10]}, {result['date']})"
        )
    return [f"Engine start{least_of}: {shown}; {later:+.2f} s: {verdict}."]


def _same_tokens(result: dict[str, Any]) -> list[str]:
    """Where greedy decoding gives vLLM's own tokens."""
    texts = []
    expected: dict[str, str] = {}
    for row in result["sessions"]:
        if row["variant"] == "vllm":
            expected = row["tokens"] | expected
    for variant in NAMES:
        rows = [row["tokens"] for row in result["sessions"] if row["variant"] == variant]
        cases = {
            case: all(tokens.get(case) in (None, known) for tokens in rows)
            for case, known in expected.items()
            if any(case in tokens for tokens in rows)
        }
        if rows:
            same = [case for case, is_same in cases.items() if is_same]
            texts.append(
                f"{NAMES[variant]}: the same tokens as vLLM's first run in {len(same)} of "
                f"{len(cases)} cases{': ' if same else ''}{', '.join(same)}."
            )
    return texts


def _failures(result: dict[str, Any]) -> list[str]:
    rows = [row for row in result["sessions"] if "failure" in row]
    texts = [f"{NAMES[row['variant']]}, turn {row['turn']}: {row['failure']}" for row in rows]
    return ["Engines that failed:\n", bullets(texts, "")] if texts else []


def _kernels(result: dict[str, Any]) -> list[str]:
    if not result["kernels"]:
        return []
    roles = list(result["kernels"][0]["roles_us"])
    order = {case: number for number, case in enumerate(result["cases"])}
    rows = [
        [
            f"{row['case']}, {NAMES[row['variant']]}",
            figure(row["us"] / 1000),
            *(f"{100 * row['roles_us'][role] / row['us']:.1f}%" for role in roles),
        ]
        for row in sorted(result["kernels"], key=lambda row: order[row["case"]])
    ]
    return [
        "Milliseconds of GPU time, and the share of each part. Tessera's products apply the "
        "activation themselves, and its kernel for few tokens also sums the rows of each "
        "token, so these are in **experts**.\n",
        table(["case", "ms", *roles], rows),
    ]


def _values(result: dict[str, Any]) -> list[str]:
    if not result["values"]:
        return []
    rows = []
    for row in result["values"]:
        run, _, batches = row["run"].partition(", ")
        logprobs, greedy = row["logprobs"], row["greedy"]
        rows.append(
            [
                NAMES[run] + (f", {batches}" if batches else ""),
                NAMES[row["against"]],
                f"{100 * logprobs['equal']:.1f}%",
                f"{logprobs['mean']:+.1e}",
                *(f"{value:.1e}" for value in logprobs["quantiles"].values()),
                f"{100 * greedy['share_before_first_difference']:.1f}%",
                f"{greedy['prompts_equal']} of {greedy['prompts']}",
            ]
        )
    quantiles = [f"{100 * float(one):g}%" for one in result["values"][0]["logprobs"]["quantiles"]]
    header = ["run", "against", "equal", "mean", *quantiles]
    return [
        "Differences of the log-probabilities of the prompts' tokens: the share that is equal, the "
        "mean difference, and quantiles of the absolute difference. Of the greedy tokens: the "
        "share before the first that differs, and the prompts without one. vLLM in other batches "
        "differs from itself, too.\n",
        table([*header, "tokens before a difference", "prompts equal"], rows),
    ]


def _serve(result: dict[str, Any], verdicts: Verdicts) -> str:
    memory = result["memory"]
    warm = memory[1] if len(memory) > 2 else memory[0]
    growth = max(row["mb"] for row in memory[1:]) - warm["mb"]
    name = f"{_title(result)}, requests"
    failed = "**missed**" if result["failed"] else "target met"
    grown = verdicts.of(f"{name}, memory in MB", growth, TARGET["memory_growth_mb"])
    texts = [
        f"{result['answered']} of {result['requests']} requests answered in {result['seconds']} s, "
        f"{result['concurrency']} at a time: {result['prompt_tokens']} tokens of prompts, "
        f"{result['generated_tokens']} generated.",
        f"Failed: {result['failed']}: {failed}.",
        f"GPU memory: {memory[0]['mb']} MB before the first request, {warm['mb']} MB after "
        f"{warm['answered']}, {memory[-1]['mb']} MB at the end, at most {growth} MB more than "
        f"after {warm['answered']}: {grown}.",
    ]
    return "\n".join(
        [
            f"### Requests to vLLM's server, {_title(result)}, {NAMES[result['variant']]}\n",
            _model(result),
            origin(result),
            bullets(texts, ""),
            *verdicts.explained(),
        ]
    )
