"""The classes of calls, and the order in which calls are made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from tessera.tools.judge.call import Call

# Each size with the maximum number of words that its calls read and write.
_SIZES = (("small", 1 << 14), ("medium", 1 << 18), ("large", None))
# A call is of the first kind that fits.
_KINDS: tuple[tuple[str, Callable[[Call], bool]], ...] = (
    ("with invalid ids", lambda call: not call.has_valid_inputs),
    ("with an expert map", lambda call: call.expert_map is not None),
    ("with ids of another type", lambda call: call.topk_ids.dtype != np.int32),
    ("without ids", lambda call: call.topk_ids.size == 0),
    ("with options", lambda call: bool({*call.changed_options()} - {"filtered_group"})),
    ("with valid ids", lambda call: True),
)
CLASSES = tuple(f"{size} calls {kind}" for size, _ in _SIZES for kind, _ in _KINDS)
# Calls of a class per round through the classes of a size.
_ROUND = 4


def class_of(call: Call) -> str:
    """The name of the class that a call belongs to."""
    size = next(name for name, most in _SIZES if most is None or call.num_words <= most)
    kind = next(name for name, fits in _KINDS if fits(call))
    return f"{size} calls {kind}"


def in_order(calls: Iterable[Call]) -> list[Call]:
    """Small calls of every class first, in rounds through the classes; large ones last."""
    classes: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        classes[class_of(call)].append(call)
    ranked = []
    for name, members in classes.items():
        size, kind = divmod(CLASSES.index(name), len(_KINDS))
        members.sort(key=lambda call: call.num_words)
        ranked += [((size, at // _ROUND, kind), call) for at, call in enumerate(members)]
    ranked.sort(key=lambda one: one[0])
    return [call for _, call in ranked]
