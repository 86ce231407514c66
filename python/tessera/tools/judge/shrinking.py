"""Makes the call of a finding small, with hypothesis."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import HypothesisException

from tessera.tools.judge.call import DEFAULTS, OPTIONS, Call
from tessera.tools.judge.clock import TimeUpError
from tessera.tools.judge.forms import adapted
from tessera.tools.judge.programs import SIMPLER
from tessera.tools.judge.search import Finding, Search

_MAX_EXAMPLES = 1000
# Up to this many ids, and entries of a map, are drawn one by one.
_FEW = 24


def shrink(search: Search, finding: Finding, seed: int, until: float) -> None:
    """Look for simpler calls than the finding's that break the same rule.

    They are many, so they are made in processes that have made other calls before.
    """
    key, valid = finding.fault.key, finding.valid
    search.shrink_for(key)

    def breaks(call: Call) -> bool:
        if time.monotonic() > until:
            raise TimeUpError
        call = adapted(search.detected.judged, call)[0]
        if valid and not call.has_valid_inputs:
            return False
        return key in search.broken_by(call)

    with _files_elsewhere(), contextlib.suppress(TimeUpError):
        # First one part at a time, which needs few calls if each costs seconds.
        before = None
        while before is not finding.call:
            before = finding.call
            for simpler in SIMPLER:
                if (call := simpler(finding.call)) is not None:
                    breaks(call)
        for few in (False, True):
            if few or finding.call.topk_ids.size > _FEW or finding.call.num_experts > _FEW:
                _search_near(finding, breaks, few, seed)


@contextlib.contextmanager
def _files_elsewhere() -> Iterator[None]:
    """Hypothesis keeps what it reads of programs in files: not in the user's current folder."""
    with tempfile.TemporaryDirectory(prefix="tessera-verify-") as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)  # its default


def _search_near(finding: Finding, breaks: Callable[[Call], bool], few: bool, seed: int) -> None:
    # HypothesisException: no simpler call was found, or calls do not behave the same every time.
    with warnings.catch_warnings(), contextlib.suppress(HypothesisException):
        warnings.simplefilter("ignore")
        find(
            _calls_near(finding, few),
            breaks,
            settings=settings(
                max_examples=_MAX_EXAMPLES,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
            random=random.Random(seed),
        )


def _calls_near(finding: Finding, few: bool) -> st.SearchStrategy[Call]:
    """Calls whose every part is the finding's, or simpler.

    `few`: calls of few ids and experts, each drawn on its own.

    For Hypothesis an example is simpler if it makes fewer choices, or smaller ones, and it changes
    one choice at a time. So keeping a part makes the same choices, and as many, as simplifying it.
    """
    original, valid = finding.call, finding.valid

    @st.composite
    def calls(draw: Callable[[Any], Any]) -> Call:
        def near(least: int, value: int) -> int:
            value = max(least, value)
            kept = st.integers(max(least, value - 1), value)
            number: int = draw(st.one_of(st.integers(least, value), kept, kept))
            return number

        num_ids = near(0, min(original.topk_ids.size, _FEW if few else original.topk_ids.size))
        top_k = near(1, original.topk_ids.shape[1])
        num_experts = near(1, min(original.num_experts, _FEW if few else original.num_experts))
        block_size = near(1, original.block_size)
        dtype = draw(st.sampled_from([np.dtype(np.int32), original.topk_ids.dtype]))
        options = {
            name: draw(st.sampled_from([DEFAULTS[name], getattr(original, name)]))
            for name in OPTIONS[1:]
        }
        call = Call(
            np.empty((num_ids // top_k, top_k), dtype), block_size, num_experts, None, **options
        )
        if original.expert_map is not None:
            call = replace(
                call, expert_map=_expert_map(draw, original.expert_map, call, valid, few)
            )
        return _with_ids(draw, original, call, valid, few)

    return calls()


def _with_ids(
    draw: Callable[[Any], Any], original: Call, call: Call, valid: bool, few: bool
) -> Call:
    """The call with ids: all the same, cycling through experts, any few, or the finding's."""
    shape, dtype, number = call.topk_ids.shape, call.topk_ids.dtype, call.topk_ids.size
    limits = np.iinfo(dtype)
    last = min(call.num_experts - 1, int(limits.max))
    one = st.integers(0, last)
    if not valid:
        outside = (-1, *range(call.num_experts, call.num_experts + 3))
        kept = [each for each in outside if limits.min <= each <= limits.max]
        one = st.one_of(one, st.sampled_from(kept)) if kept else one
    elif call.filtered_group and limits.min < 0:
        one = st.one_of(one, st.just(-1))
    way, value = draw(st.sampled_from(("same", "cycle", "any", "kept", "kept", "kept"))), draw(one)
    if way == "same":
        return replace(call, topk_ids=np.full(shape, value, dtype))
    if way == "cycle":
        return replace(call, topk_ids=(np.arange(number) % (last + 1)).reshape(shape).astype(dtype))
    values = draw(st.lists(one, min_size=number, max_size=number)) if few else None
    if way == "any" and values is not None:
        return replace(call, topk_ids=np.array(values, dtype).reshape(shape))
    ids = original.topk_ids.reshape(-1)[:number]
    source = f"{original.source}.reshape(-1)[:{number}]"
    if valid:
        ids = np.where(ids < 0, ids, ids % (last + 1))
        source = f"({source} % {last + 1})"
    source = f"{source}.reshape({shape}).astype(np.{dtype})"
    kept_ids = ids.astype(dtype)
    if ids.size < number or not np.array_equal(kept_ids, ids):  # too few of them, or too large
        return replace(call, topk_ids=np.zeros(shape, dtype))
    return replace(call, topk_ids=kept_ids.reshape(shape), source=source)


def _expert_map(
    draw: Callable[[Any], Any],
    original: npt.NDArray[np.int32],
    call: Call,
    valid: bool,
    few: bool,
) -> npt.NDArray[np.int32] | None:
    """No map, a map with all experts local, all remote, any short map, or the finding's."""
    number = call.num_experts
    way = draw(st.sampled_from(("none", "identity", "remote", "any", "kept")))
    if way == "none":
        return None
    if way in ("identity", "remote"):
        values = np.arange(number) if way == "identity" else np.full(number, -1)
        return values.astype(np.int32)
    one = st.integers(-1, number - 1)
    if not valid:
        one = st.one_of(one, st.sampled_from([number, -2]))
    entries = draw(st.lists(one, min_size=number, max_size=number)) if few else None
    if way == "any" and entries is not None:
        return np.array(entries, np.int32)
    kept: npt.NDArray[np.int32] = original[:number].copy()
    return kept
