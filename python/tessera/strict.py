"""Strict mode: reports of invalid ids and map entries, and `check()`, which reads them.

Calls on the host raise themselves; reports are for calls on a device, which do not wait.

Nothing here takes a lock. A signal handler, or a finalizer of the garbage collector, may interrupt
a call or a check, and itself call or check; another thread may fork the process meanwhile. Shared
reports are kept in deques, whose `append`, `pop` and `popleft` are atomic: code that takes a report
out of a deque owns it until it puts the report back or frees its memory.

Nothing here waits for a whole device, which would break a graph that another thread captures on it.
Every report has the stream of its call, and checks wait only for these streams.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tessera._framework import Framework, on_host

# Maximum number of reports that wait for `check()`; the call after that many reads them itself.
MAX_UNREAD = 1024

# Reports per piece of memory. During a capture no piece can be allocated, because replays of other
# graphs might write to it; so half a piece is kept in reserve.
_PIECE = 4096


class InvalidRoutingError(ValueError):
    """A validated call had an invalid id or map entry. Its outputs were still written."""


class Validation(NamedTuple):
    """Content of a report, int64, in the order of `AlignBlockSizeValidation` in C++."""

    num_invalid_ids: int
    first_invalid_id: int
    first_invalid_id_value: int
    num_invalid_map_entries: int
    first_invalid_map_entry: int
    first_invalid_map_entry_value: int


class _Summary(NamedTuple):
    """What was invalid in one or several calls. Tuples compare by the number of the call."""

    number: int  # of the (first) call, in the order of the calls
    num_invalid: int
    message: str


class _Row(NamedTuple):
    """Memory of one report."""

    memory: Any  # [_PIECE, 6]
    number: int
    array: Any  # int64[6], a view of that row of `memory`
    # Holds this row while no report uses it. Free memory reports nothing invalid, and no stream
    # is about to write to it: a captured call must report nothing before its first replay.
    free: deque[_Row]


def require_flag(validate: object) -> None:
    """Refuse what is neither a flag, of Python or NumPy, nor "now"."""
    is_scalar = isinstance(validate, int | np.integer | np.bool_ | str)
    if not is_scalar or validate not in (False, True, "now"):
        raise ValueError(
            "align_block_size: validate: expected a bool or 'now' (TESSERA_VALIDATE: 0, 1 or now), "
            f"got {validate!r}"
        )


class ValidationReport:
    """The report of one call, from before the call until it has been read."""

    def __init__(
        self,
        validate: object,
        topk_ids: Any,
        framework: Framework,
        cuda_index: int,
        num_experts: int,
        filtered_group: bool,
    ) -> None:
        """Takes memory for the report.

        Raises:
            ValueError: `validate` is neither "now" nor a flag, or cannot be honoured while a graph
                is being captured.
            TypeError: the framework of `topk_ids` cannot allocate memory for the report.
        """
        require_flag(validate)
        self.at_once = validate == "now"
        self.framework = framework
        self.cuda_index = cuda_index
        self.shape = tuple(getattr(topk_ids, "shape", ()))
        self.dtype = getattr(topk_ids, "dtype", None)
        self.num_experts = num_experts
        self.first_id = -1 if filtered_group else 0
        self.is_captured = framework.is_capturing(cuda_index)
        if self.at_once and self.is_captured:
            raise ValueError(
                "align_block_size: validate: expected a bool while a graph is being captured, "
                "got 'now'"
            )
        self.stream = framework.current_stream(cuda_index)
        # On the host a call has run when it returns, so it can raise at once.
        self.at_once |= self.stream is None and not self.is_captured
        self.number = 0
        self.row = _reports.take(self, topk_ids)

    @property
    def array(self) -> Any:
        """int64[6] for the call to write to."""
        return self.row.array

    def cancel(self) -> None:
        """Handle a call that was refused, or that an exception interrupted, perhaps after it ran.

        A refused call has written nothing; a later check finds that out, so this need not wait.
        """
        if self.is_captured:
            self.row.free.append(self.row)
        else:
            _reports.add(self)

    def submit(self) -> None:
        """Handle a call that was made.

        Raises:
            InvalidRoutingError: an id or entry was invalid, and the call is to raise at once.
        """
        if not self.at_once:
            _reports.add(self)
            return
        message = None
        try:
            self.framework.wait_for(self.cuda_index, self.stream)
            message = self.message(Validation._make(np.asarray(on_host(self.array)).tolist()))
        finally:
            if message != "":  # something was invalid, or an exception interrupted this
                _zero([self])
            self.row.free.append(self.row)
        if message:
            raise InvalidRoutingError(message)

    def message(self, found: Validation) -> str:
        """A line about the first invalid id or entry; empty if there is none."""
        if found.num_invalid_ids:
            value = found.first_invalid_id_value
            if str(self.dtype).endswith("uint64"):
                value %= 2**64
            where = ""
            if len(self.shape) > 1:
                token, slot = divmod(found.first_invalid_id, self.shape[-1])
                where = f"token {token}, slot {slot}; "
            ids = "id" if found.num_invalid_ids == 1 else "ids"
            return (
                f"align_block_size: topk_ids[{found.first_invalid_id}]: expected an id in "
                f"[{self.first_id}, {self.num_experts}), got {value} "
                f"({where}{found.num_invalid_ids} invalid {ids} in this call)"
            )
        if found.num_invalid_map_entries:
            entries = "entry" if found.num_invalid_map_entries == 1 else "entries"
            return (
                f"align_block_size: expert_map[{found.first_invalid_map_entry}]: expected -1 or a "
                f"local expert in [0, {self.num_experts}), got "
                f"{found.first_invalid_map_entry_value} "
                f"({found.num_invalid_map_entries} invalid {entries} in this call)"
            )
        return ""


def _take_all(source: deque[Any], target: list[Any]) -> None:
    """Moves the current items of `source`, except those that other code takes at the same time.

    This is one call of a C function, so that no item is lost if a signal handler raises.
    """
    with contextlib.suppress(IndexError):
        target.extend(itertools.islice(iter(source.popleft, None), len(source)))


class _Reports:
    """The unread reports of this process, and their memory."""

    def __init__(self) -> None:
        self.free: dict[tuple[int, int], deque[_Row]] = {}  # of a framework's id and a device
        self.submitted: deque[ValidationReport] = deque()
        # A check takes them out and puts them back.
        self.captured: deque[ValidationReport] = deque()
        self.summaries: deque[_Summary] = deque()  # already read, for the next check

    def add(self, report: ValidationReport) -> None:
        """Keeps a report until it is read."""
        report.number = next(_numbers)
        (self.captured if report.is_captured else self.submitted).append(report)

    def take(self, report: ValidationReport, topk_ids: Any) -> _Row:
        """Memory for a report."""
        key = (id(report.framework), report.cuda_index)
        free = self.free.get(key)
        if free is None:
            free = self.free.setdefault(key, deque())
        if not report.is_captured and len(self.submitted) >= MAX_UNREAD:
            self.read(self.submitted)
            if (summary := self.take_summary()).message:
                self.summaries.append(summary)  # merged, so that the deque stays short
        while True:
            if not report.is_captured and len(free) < _PIECE // 2:
                free.extend(self.new_piece(report, topk_ids, free))
            try:
                return free.pop()
            except IndexError:  # there was none, or other code has just taken it
                if report.is_captured:
                    raise ValueError(
                        "align_block_size: validate: expected a validated call on cuda:"
                        f"{report.cuda_index} before a graph is captured, to have memory for "
                        "reports, got none"
                    ) from None

    @staticmethod
    def new_piece(report: ValidationReport, topk_ids: Any, free: deque[_Row]) -> list[_Row]:
        length = len(Validation._fields)
        memory = report.framework.zeros_int64(topk_ids, _PIECE * length).reshape(_PIECE, length)
        # From now on, calls on any stream may write to it.
        report.framework.wait_for(report.cuda_index, report.stream)
        return [_Row(memory, number, array, free) for number, array in enumerate(memory)]

    def read(self, queue: deque[ValidationReport]) -> bool:
        """Summarizes a queue's reports in `summaries`; frees or zeroes their memory.

        Reports whose streams must not be waited for stay in the queue. So do all reports if an
        exception occurs before they are read; if it occurs later, while memory is zeroed, a
        captured call may report an invalid id twice, and memory of other calls is not reused.

        Returns:
            False if this thread captures a graph on the current stream of a device with reports.
        """
        stay: list[ValidationReport] = []
        summaries: list[_Summary] = []
        try:
            _take_all(queue, stay)
            ready, waiting, may_wait = _wait_for(stay)
            found = _found_in(ready)
            captured = [report for report in ready if report.is_captured]
            # Before this line no report counts as read, after it all do.
            stay, summaries = [*waiting, *captured], [one for _, one in found]
            _zero([report for report, _ in found])
            for report in ready:
                if not report.is_captured:
                    report.row.free.append(report.row)
            return may_wait
        finally:
            try:
                queue.extend(stay)
            finally:
                self.summaries.extend(summaries)

    def take_summary(self) -> _Summary:
        """Takes all `summaries`, merged: the message of the earliest call, the sum of counts."""
        summaries: list[_Summary] = []
        try:
            _take_all(self.summaries, summaries)
            number, _, message = min(summaries, default=_Summary(0, 0, ""))
            return _Summary(number, sum(one.num_invalid for one in summaries), message)
        except BaseException:  # raised by a signal handler
            self.summaries.extend(summaries)
            raise


def _wait_for(
    reports: Iterable[ValidationReport],
) -> tuple[list[ValidationReport], list[ValidationReport], bool]:
    """Waits for the streams of the calls.

    Returns:
        The complete reports; the reports whose stream must not be waited for, because a graph is
        being captured; and whether no such capture is on a current stream of this thread.
    """
    capturing: dict[tuple[int, int, Any], bool] = {}
    done: dict[tuple[int, int, Any], bool] = {}
    ready: list[ValidationReport] = []
    waiting: list[ValidationReport] = []
    for report in reports:
        framework, cuda_index = report.framework, report.cuda_index
        stream = (id(framework), cuda_index, report.stream)
        if stream not in done:
            capturing[stream] = framework.is_capturing(cuda_index)
            done[stream] = not capturing[stream] and framework.wait_for(cuda_index, report.stream)
        # A graph may be replayed on any stream. Copying the report waits for the current one.
        is_ready = done[stream] or (report.is_captured and not capturing[stream])
        (ready if is_ready else waiting).append(report)
    return ready, waiting, not any(capturing.values())


def _found_in(reports: Iterable[ValidationReport]) -> list[tuple[ValidationReport, _Summary]]:
    """The reports with invalid ids or entries, and these. Copies each piece of memory once."""
    on_hosts: dict[int, Any] = {}
    found = []
    for report in reports:
        memory, number, _, _ = report.row
        if id(memory) not in on_hosts:
            on_hosts[id(memory)] = np.asarray(on_host(memory))
        validation = Validation._make(on_hosts[id(memory)][number].tolist())
        if num_invalid := validation.num_invalid_ids + validation.num_invalid_map_entries:
            summary = _Summary(report.number, num_invalid, report.message(validation))
            found.append((report, summary))
    return found


def _zero(reports: Iterable[ValidationReport]) -> None:
    """Zeroes the memory of reports, and waits until calls on any stream may write to it."""
    devices = {}
    for report in reports:
        report.framework.zero(report.array)
        devices[id(report.framework), report.cuda_index] = report.framework
    for (_, cuda_index), framework in devices.items():
        framework.wait_for(cuda_index, framework.current_stream(cuda_index))


_numbers = itertools.count()
_reports = _Reports()


def _forget() -> None:
    global _reports
    _reports = _Reports()


# The parent reads the reports of calls before the fork.
os.register_at_fork(after_in_child=_forget)


def check(*, raise_invalid: bool = True) -> int:
    """Read and clear the reports of validated calls on devices since the last check.

    Waits only for the streams on which these calls were made. A call in a captured graph reports
    again at every replay; wait for replays yourself first, unless they run on the current stream or
    on the stream of the capture.

    May be called from any thread, from signal handlers and finalizers, whatever they interrupt, and
    after a fork: a child process has only the reports of its own calls. If several checks run at
    the same time, exactly one of them returns each invalid id. Other threads may capture graphs
    meanwhile; the report of a call on a stream that is being captured stays for a later check.

    Returns:
        The number of invalid ids and map entries; 0 if all were valid.

    Raises:
        InvalidRoutingError: an id or entry was invalid; the message has the first one, in the order
            of the calls. Not raised if `raise_invalid` is False.
        RuntimeError: a graph is being captured on the current stream. No report is lost.
    """
    reports = None
    while reports is not _reports:  # in a child that was forked inside this loop, once more
        reports = _reports
        if not reports.read(reports.submitted) & reports.read(reports.captured):
            raise RuntimeError("check: expected no graph to be captured meanwhile")
        summary = reports.take_summary()
    if summary.message and raise_invalid:
        raise InvalidRoutingError(summary.message)
    return summary.num_invalid
