"""The targets of `fused_experts` on GPUs, and how its lines on the page are judged by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from page_fused_experts_lines import Line, is_in_fp8
from page_verdicts import TARGETS, Verdicts


@dataclass(frozen=True)
class Judged:
    """A ratio of a line, and what it may be.

    ratio: None where it was not measured.
    target: must and aim; empty where there is none.
    mark: what a ratio of another run has behind it.
    """

    over: str
    ratio: float | None
    target: dict[str, float]
    mark: str = ""

    def cells(self, line: Line, verdicts: Verdicts) -> list[str]:
        """The ratio and the verdict on it."""
        shape, ratio = line.row["shape"], self.ratio
        shown = "-" if ratio is None else f"{ratio:.2f}{self.mark}"
        if not self.target:
            return [shown, "none"]
        if ratio is None:
            return [shown, "not measured"]
        subject = f"time over {self.over}, "
        verdict = verdicts.of(f"{shape}, {line.method}", ratio, self.target, subject, shape)
        return [shown, verdict + self.mark]


def judged(line: Line) -> list[Judged]:
    """The ratios of a line that may have targets: over the floor, the best peer and vLLM's layer.

    With weights in fp8 none is over vLLM's layer, as hardly any other peer takes these.
    """
    of_best = best_peer_target(line.row)
    ratios = [_over_floor(line), _over_peer(line, line.best_peer(), "the best peer's", of_best)]
    if not is_in_fp8(line.row):
        ratios.append(_over_peer(line, "vllm", "vLLM's", vllm_target(line.row)))
    return ratios


def _over_floor(line: Line) -> Judged:
    floor, target = line.floor(), floor_target(line.row)
    if floor is None:
        return Judged("the floor", None, target)
    of_ratio: dict[str, float] = {
        key: target[key] + target.get(f"{key}_us", 0) / floor
        for key in ("must", "aim")
        if key in target
    }
    return Judged("the floor", line.us["tessera"] / floor, of_ratio)


def _over_peer(line: Line, name: str | None, owner: str, target: dict[str, float]) -> Judged:
    row = line.row_with(name) if name else None
    if name is None or row is None:
        return Judged(owner, None, target)
    return Judged(owner, line.ratio(name), target, line.mark(row))


def _sizes(row: dict[str, Any]) -> str:
    """The name of the shape with uniform ids."""
    weights = f"fp8 {row['quantization']}" if is_in_fp8(row) else row["dtype"]
    return f"{row['model']} {weights}/{row['num_tokens']}"


def floor_target(row: dict[str, Any]) -> dict[str, float]:
    """How many times the greater floor a call may take, and how many microseconds more."""
    target = TARGETS["fused_experts_over_floor"]
    factors = {"uniform": 1.0, "zipf": target["zipf"]}
    routing = row["trace"] or row["skew"]
    if routing not in factors:
        return {}
    return {
        key: value if key.endswith("_us") else value * factors[routing]
        for key, value in target.get(_sizes(row), {}).items()
    }


def must_text(target: dict[str, float]) -> str:
    """How many times the floor a call may take, for a table."""
    if "must" not in target:
        return "-"
    factor = f"{target['must']:.3f}".removesuffix("0")
    return f"≤ {factor}" + (f" + {target['must_us']} us" if "must_us" in target else "")


def best_peer_target(row: dict[str, Any]) -> dict[str, float]:
    """How many times the best peer a call may take."""
    if is_in_fp8(row):
        return dict(TARGETS["fused_experts_fp8_over_best_peer"])
    target = TARGETS["fused_experts_over_best_peer"]
    return dict(target.get(_sizes(row), target["others"]))


def vllm_target(row: dict[str, Any]) -> dict[str, float]:
    """How many times the layer of vLLM the shape may take; empty where there is no target."""
    target = TARGETS["fused_experts_over_vllm"]
    of_model: dict[str, float] = target.get(row["model"], target["others"])
    return of_model if row["num_tokens"] <= of_model.get("max_tokens", row["num_tokens"]) else {}


def zipf_text() -> str:
    """How the musts over the floor depend on the ids."""
    zipf = TARGETS["fused_experts_over_floor"]["zipf"]
    return f"For zipf ids this number is {zipf} times as large."


def musts_text(lines: list[Line]) -> str:
    """How many of the musts are met, by method."""
    texts = []
    for method in dict.fromkeys(line.method for line in lines):
        held: dict[str, list[bool]] = {}
        for one in (one for line in lines if line.method == method for one in judged(line)):
            if one.ratio is not None and "must" in one.target:
                held.setdefault(one.over, []).append(one.ratio <= one.target["must"])
        counts = [f"{sum(met)} of {len(met)} over {over}" for over, met in held.items()]
        texts.append(f"{method}: {', '.join(counts) or 'none measured'}")
    return f"Musts that are met, {'; '.join(texts)}.\n"
