"""The limits of an inspection, in sentences for its reader."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.tools.inspection.document import Log
from tessera.tools.inspection.ranks import BALANCED, CONTIGUOUS
from tessera.tools.inspection.repeated import SHORTEST_RUN

NO_TOKENS = (
    "Loads are without tokens: batches, padding, the block size to use, repeated rows, drift, "
    "and a placement that is judged on later tokens than it is made by need the ids of tokens."
)


def limits(
    logs: Sequence[Log], keep_repeated: bool, *, has_tokens: bool = True, has_loads: bool = False
) -> list[str]:
    """Sentences that apply to these logs, of which some have tokens, or some have loads alone."""
    of_tokens = [
        "A batch is consecutive tokens of a log. An engine mixes requests: its batches may meet "
        "more experts, or fewer.",
        "Drift is one over time if the log is in the order of time.",
        "Batches larger than a layer are extrapolated: every expert gets its share.",
        "The cost model was fitted on one GPU, an H200, and one kernel; others may prefer other "
        "block sizes, also 8, which is not advised here: measure what matters.",
    ]
    repeated = (
        f"Runs of {SHORTEST_RUN} or more equal rows are counted as traffic, as asked for."
        if keep_repeated
        else f"Runs of {SHORTEST_RUN} or more equal rows are taken for warm-up, and left out."
    )
    ranks = (
        "Imbalance over ranks counts ids, for placements without copies of experts. Contiguous: "
        f"{CONTIGUOUS}. Balanced: {BALANCED}, by the loads of the first half of a layer's tokens, "
        "and judged on the second; in hindsight: by those of the second, which nobody knows before."
    )
    if not has_tokens:
        ranks = (
            "Imbalance over ranks counts ids, for placements without copies of experts. "
            f"Contiguous: {CONTIGUOUS}. In hindsight: {BALANCED}, by the very loads that judge it."
        )
    sentences = [*of_tokens, ranks, repeated] if has_tokens else [ranks]
    if any(log["num_experts_source"] == "largest id + 1" for log in logs):
        sentences.append(
            "Where a log does not give the number of experts, it is the largest id + 1: experts "
            "above that, which no token chose, are unknown."
        )
    if has_loads:
        sentences.append(NO_TOKENS)
    return sentences
