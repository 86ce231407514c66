"""How files are to be read, where their content leaves it open."""

from __future__ import annotations

from dataclasses import dataclass

AXES = ("tokens,layers,top_k", "layers,tokens,top_k")
PHASES = ("prompt", "generation")


@dataclass(frozen=True)
class Options:
    """The options that every command has; each is also what a message names.

    num_experts: `--experts`, overrides the number in the file.
    skip_bad_lines: `--skip-bad-lines`, skip and count bad lines of logs.
    layers: `--layer`, the numbers or names of the only layers to read; empty for all.
    top_k: `--top-k`, ids to choose for each token, where a file holds the router's logits.
    axes: `--axes`, one of `AXES`.
    packed: `--packed`, the upper 16 bits of an integer are the id.
    loads: `--loads`, the numbers are loads [layers, experts] rather than ids.
    zero_experts: `--zero-experts`, ids from the number of experts on stand for no expert.
    phase: `--phase`, one of `PHASES`; None for both.
    num_layers: `--num-layers`, of base64 without a shape.
    """

    num_experts: int | None = None
    skip_bad_lines: bool = False
    layers: tuple[str, ...] = ()
    top_k: int | None = None
    axes: str | None = None
    packed: bool = False
    loads: bool = False
    zero_experts: bool = False
    phase: str | None = None
    num_layers: int | None = None
