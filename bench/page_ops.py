"""The part of the performance page about the ops besides `align_block_size`."""

from __future__ import annotations

from typing import Any

from page_text import best_of_kind, compared, origin, read_results, table, times

from tessera.tools.bench.ops import OPS
from tessera.tools.bench.report import figure, kinds_of

# By the name of the files of results.
INTRODUCTIONS = {
    "family": """\
## The family

**align_block_size** is a call of the main op that gives the same tokens to the same groups. For
batches, it has to find the groups, whose sizes the other op gets as counts; for adapters, it treats
each expert of each adapter as an expert of its own. **Floor** reads and writes as many bytes as the
op, and computes nothing. On a GPU it is the best of several grids, with and without programmatic
dependent launch; on the CPU it is a loop in C++, while the ops are called from Python.
""",
    "moe_permute": """\
## moe_permute

A shape is tokens x slots per token x hidden size / experts, without padding. **Copy** is torch's
copy of half as many bytes as the op reads and writes, so that it moves as many; each row of `x`
counts as read once. **Peer** is torch: a stable `argsort` of the ids, then `index_select`.

The aim from 4,096 tokens on, nine tenths of a copy's bandwidth, is missed on a GPU. The alignment
has to end before the first row can be written, and memory is written in as many places at once as
there are experts: a kernel that only copies the rows, whose places it is given, is slower than a
copy for the same reason where the rows are several times as large as the L2 cache, although to
write memory from one end to the other takes less time than to copy it. Tried: rows in the order of
their places, which reads `x` through the L2 cache as often as there are slots, and is slower;
stores by the copy engine, other hints for the caches, CTAs that stay, and `x` fetched into the L2
cache during the alignment, none of which was faster.
""",
    "moe_sum": """\
## moe_sum

A shape is tokens x slots per token x hidden size; all sums are weighted. **Copy** is torch's copy
of half as many bytes as the op reads and writes, so that it moves as many. **Peer** is torch:
`(input * topk_weights[..., None]).sum(1)`, which sums in another order, and so has other last bits.
""",
    "moe_unpermute": """\
## moe_unpermute

A shape is tokens x slots per token x hidden size; all sums are weighted, and every pair has a row
of its own, in a random order. **Copy** is torch's copy of half as many bytes as the op reads and
writes, so that it moves as many. **Peer** is torch:
`(rows[inverse] * topk_weights[..., None]).sum(1)`, which sums in another order, and so has other
last bits.
""",
    "quantize_fp8": """\
## quantize_fp8

A shape is tokens x hidden size, the group and the data type of `x`; all scales are computed.
**Copy** is torch's copy of half as many bytes as the op reads and writes, so that it moves as many;
`x` counts as read once. **Peer** is torch: the formula of the op's page, an operation at a time.
""",
    "select_experts": """\
## select_experts

A shape is tokens x experts x experts per token; all weights are renormalized, and groups come with
a bias and a scaling factor, as in DeepSeek-V3. **Copy** is torch's copy of half as many bytes as
the op reads and writes, so that it moves as many. **Peers** are torch and, on a GPU, vLLM and
sgl_kernel: they may choose another of equal experts, and have other last bits. On the CPU
**tessera/1** and **torch/1** run on one thread, and the others on all. Also on one thread,
**tessera/1 new** makes its outputs, where the other calls write to given ones, and **torch/1 topk**
is `torch.topk(torch.softmax(logits, -1), k)`, without what follows.
""",
    "fused_moe": """\
## fused_moe

A shape is tokens x hidden size x experts x intermediate size x experts per token; the whole layer
from the logits of its router on, with renormalized weights. **Both ops** are `select_experts` and
after it `fused_experts`, which give the same bits.
""",
    "select_and_align": """\
## select_and_align

A shape is tokens x experts x experts per token / block size; all weights are renormalized, and
groups come with a bias and a scaling factor, as in DeepSeek-V3. **Peer** is `select_experts` and
after it `align_block_size`, which give the same bits; each of them alone is timed, too. On a GPU
the op makes the same two launches; for few tokens the first one may start early, so that the
second one is waiting on the GPU when it ends. Three quarters of the two calls' time, the aim up to
256 tokens, is missed. Tried: one launch for both, by one CTA or a cluster of them, which was slower
than two launches at every size: what one CTA finds does not reach the others sooner than a launch
that is waiting.
""",
}

# Results with a module of the page of their own.
ELSEWHERE = ("fused_experts",)

FILES = {"On the NVIDIA H200": "h200/{}.json", "On the CPU": "cpu_{}.json"}


def ops_sections() -> list[str]:
    """A section for each file of results that ops share, as far as they were measured."""
    names = dict.fromkeys(op.results for op in OPS.values() if op.results not in ("", *ELSEWHERE))
    return [section for name in names if (section := _section(name))]


def _section(name: str) -> str:
    parts = []
    for title, path in FILES.items():
        result = read_results(path.format(name))
        if result is None:
            continue
        parts += [f"### {title}\n", origin(result)]
        for method in result["methods"]:
            if len(result["methods"]) > 1:
                parts.append(f"By {method}:\n")
            parts.append(_table(result, method))
    return "\n".join([INTRODUCTIONS.get(name, f"## {name}\n"), *parts]) if parts else ""


def _table(result: dict[str, Any], method: str) -> str:
    """Tessera beside related ops, the best peer where there are peers, and the floor."""
    kinds = kinds_of(result)
    related = [name for name, kind in kinds.items() if kind == "related"]
    others = [kind for kind in ("peer", "floor") if kind in kinds.values()]
    rows = []
    for row in result["rows"]:
        us = times(row, method)
        ours = us.get("tessera")
        cells = [f"{row['op']} {row['shape']}", "-" if ours is None else figure(ours)]
        for name in related:
            cells += compared(ours, (us[name], "") if name in us else None)
        for kind in others:
            cells += compared(ours, best_of_kind(result, row, method, kind))
        rows.append(cells)
    titles = {"peer": "best peer", "floor": "floor"}
    names = [*related, *(titles[kind] for kind in others)]
    return table(
        ["op and shape", "us", *(cell for name in names for cell in (name, "ratio"))], rows
    )
