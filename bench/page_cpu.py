"""The part of the performance page about the CPU."""

from __future__ import annotations

from page_text import bullets, listing, origin, read_results, spoiled, table, times

from tessera.tools.bench.report import figure

INTRODUCTION = """\
## align_block_size on the CPU

Shape = tokens x experts x top_k / block_size, int32 ids. Tessera is called through its C++ API,
validation and dispatch included; the others are bare functions.

- **textbook**: count, padded prefix sum, scatter; one thread.
- **thread-local counts**: the algorithm of SGLang's CPU path, restated on OpenMP threads: fill,
  count per thread, merge the counts into offsets, scatter; the better of one and two threads.
- **floor**: copies the ids and writes outputs of the same sizes; sorts nothing.
"""

RATIOS = (
    "textbook / 1 thread",
    "1 thread / 2 threads",
    "thread-local counts / Tessera",
    "Tessera / floor",
)


def cpu_section() -> str:
    """The speed beside the peers, and the time of a call from Python."""
    result = read_results("cpu.json")
    rows, losses = [], []
    for row in result["rows"]:
        us, ratios = times(row, "call"), row["ratios"]
        counts = [time for name, time in us.items() if name.startswith("thread_local_counts/")]
        shown = [us["tessera/1"], us["tessera/2"], us["textbook"], min(counts), us["floor"]]
        rows.append(
            [row["shape"], *map(figure, shown), *(f"{ratios[name]:.2f}" for name in RATIOS)]
        )
        losses += [
            f"{row['shape']}: {name} {ratios[name]:.2f}"
            for name in ("textbook / 1 thread", "thread-local counts / Tessera")
            if ratios[name] < 1
        ]
    header = ["shape", "1 thread", "2 threads", "textbook", "thread-local counts", "floor"]
    parts = [
        INTRODUCTION,
        "A ratio above 1 says that Tessera, or a second thread, is faster; the last ratio is at\n"
        "least 1 unless Tessera beats the floor.\n",
        origin(result),
        table([*header, *RATIOS], rows),
        "Where Tessera is slower:\n",
        bullets(losses, "Nowhere in this table."),
        *spoiled(result),
    ]
    calls = read_results("cpu_python.json")
    if calls is not None:
        parts += [
            "## A call from Python, on the CPU\n",
            origin(calls),
            listing(calls, "eager"),
        ]
    return "\n".join(parts)
