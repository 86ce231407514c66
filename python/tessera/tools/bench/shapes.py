"""Shapes of `align_block_size`, and named sets of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

SKEWS = ("uniform", "zipf", "one-hot-expert")
DTYPES = ("int32", "int64")
MAPS = ("none", "half-remote")


@dataclass(frozen=True)
class Shape:
    """One problem; synthetic ids of a token are all different.

    skew: the popularity of the experts; zipf is rank^-1.2, and with one-hot-expert every token has
        one and the same expert among its ids.
    map: with half-remote, an expert map on which every odd expert is remote.
    trace: the routing log and layer that the ids come from, in one window of so many tokens or in
        several; empty for synthetic ones.
    shift_bytes: how far past an allocation's begin every array starts, in a call that allocates
        nothing; None for ordinary calls, which allocate their outputs.
    """

    num_tokens: int
    num_experts: int
    top_k: int
    block_size: int
    skew: str = "uniform"
    dtype: str = "int32"
    map: str = "none"
    trace: str = ""
    shift_bytes: int | None = None

    @property
    def size_name(self) -> str:
        """Tokens x experts x top_k / block_size."""
        return f"{self.num_tokens}x{self.num_experts}x{self.top_k}/{self.block_size}"

    @property
    def name(self) -> str:
        """A name unique in a run: the sizes, and every unusual property."""
        parts = [self.size_name]
        if self.skew != "uniform" and not self.trace:
            parts.append(self.skew)
        if self.dtype != "int32":
            parts.append(self.dtype)
        if self.map != "none":
            parts.append(f"map {self.map}")
        if self.shift_bytes is not None:
            parts.append(f"shift {self.shift_bytes}")
        title = f"{self.trace}: " if self.trace else ""
        return title + "/".join(parts)

    def of_log(self, trace: str) -> Shape:
        """The same sizes, with ids of a routing log."""
        return replace(self, skew="log", trace=trace)


def usual_block_size(num_tokens: int) -> int:
    """The usual block size of kernels at this number of tokens."""
    if num_tokens <= 64:
        return 16
    return 64 if num_tokens <= 1024 else 128


def product(
    tokens: Iterable[int],
    experts: Iterable[int],
    top_k: Iterable[int],
    block_sizes: Iterable[int | None] = (None,),
) -> list[Shape]:
    """Every combination in which a token's ids can be distinct; None is the usual block size."""
    return [
        Shape(t, e, k, b or usual_block_size(t))
        for t, e, k, b in itertools.product(tokens, experts, top_k, block_sizes)
        if k <= e
    ]


def varied(
    shapes: Iterable[Shape],
    skews: Iterable[str] = ("uniform",),
    dtypes: Iterable[str] = ("int32",),
    maps: Iterable[str] = ("none",),
    shifts: Iterable[int | None] = (None,),
) -> list[Shape]:
    """The shapes in all these variants, without repetition; a log's ids keep their own skew."""
    variants = itertools.product(shapes, skews, dtypes, maps, shifts)
    found = [
        replace(
            shape,
            skew=shape.skew if shape.trace or shape.skew != "uniform" else skew,
            dtype=dtype,
            map=map_,
            shift_bytes=shift,
        )
        for shape, skew, dtype, map_, shift in variants
    ]
    return list(dict.fromkeys(found))


GRID = product((1, 16, 64, 256, 1024, 4096, 16384, 65536, 262144), (8, 64, 128, 256, 512), (2, 8))

HEADLINE = [
    Shape(1, 64, 2, 16),
    Shape(16, 256, 8, 16),
    Shape(64, 256, 8, 16),
    Shape(256, 64, 2, 64),
    Shape(256, 256, 8, 64),
    Shape(1024, 256, 8, 64),
    Shape(4096, 64, 2, 128),
    Shape(4096, 64, 2, 128, skew="zipf"),
    Shape(4096, 256, 8, 128),
    Shape(16384, 256, 8, 128),
    Shape(65536, 256, 8, 128),
    Shape(262144, 256, 8, 128),
]

QUICK = [
    Shape(1, 64, 2, 16),
    Shape(16, 256, 8, 16),
    Shape(256, 256, 8, 64),
    Shape(4096, 64, 2, 128),
    Shape(16384, 256, 8, 128),
]

# Host cost does not depend on the sizes, as long as the call is short.
SIXTEEN_TOKENS = [Shape(16, 64, 2, 16), Shape(16, 256, 8, 16)]

PRESETS = {"quick": QUICK, "headline": HEADLINE, "grid": GRID}
