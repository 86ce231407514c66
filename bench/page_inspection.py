"""The part of the performance page about reading routing logs."""

from __future__ import annotations

from page_text import origin, read_results

from tessera.tools.bench.report import figure


def inspection_section() -> str:
    """Time and memory of `tessera inspect` for a large log; empty if that was not measured."""
    result = read_results("inspection.json")
    if result is None:
        return ""
    torch = "; importing torch, which is installed there, is part of time and memory"
    return "\n".join(
        [
            "## Inspecting a log\n",
            f"`tessera inspect` read a log of {result['bytes'] / 1e9:.1f} GB with "
            f"{result['num_rows'] / 1e6:.1f} million rows, one per token and layer, "
            f"{result['num_layers']} layers, {result['num_experts']} experts, top "
            f"{result['top_k']}. It took {figure(result['seconds'])} s, "
            f"{figure(result['cpu_seconds'])} s of CPU time, and at most "
            f"{result['peak_bytes'] / 1e6:.0f} MB of memory"
            f"{torch if result['has_torch'] else ''}.\n",
            origin(result),
        ]
    )
