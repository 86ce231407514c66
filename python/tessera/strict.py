"""Strict mode: reports of invalid ids and map entries, and `check()`, which reads them."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from tessera._frameworks import Framework, on_host

# Reports that may wait for `check()`; the call after so many reads them itself.
MAX_UNREAD = 1024

# Memory for reports is taken in pieces of so many. While a graph is captured none can be taken, for
# replays of other graphs might write to it; so half a piece is kept ahead.
_PIECE = 4096


class InvalidRoutingError(ValueError):
    """A validated call had an invalid id or map entry. Its outputs are written all the same."""


class Findings(NamedTuple):
    """What a report holds, int64, in the order of `AlignBlockSizeValidation` in the C++ header."""

    num_invalid_ids: int
    first_invalid_id: int
    first_invalid_id_value: int
    num_invalid_map_entries: int
    first_invalid_map_entry: int
    first_invalid_map_entry_value: int


class _Place(NamedTuple):
    """Memory of one report."""

    memory: Any  # [_PIECE, 6], all zero where nothing is reported
    row: int
    array: Any  # int64[6], a view of that row
    free: list[_Place]  # where it belongs while no report needs it


class Report:
    """What one call reports, from before the call until it has been read."""

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
            ValueError: `validate` is something else than "now" or a flag, or cannot be honoured
                while a graph is being captured.
            TypeError: there is no way to make memory beside `topk_ids`.
        """
        if isinstance(validate, str) and validate != "now":
            raise ValueError(
                "align_block_size: validate: expected a bool or 'now' (TESSERA_VALIDATE: 0, 1 or "
                f"now), got {validate!r}"
            )
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
        self.place = _reports.take(self, topk_ids)

    @property
    def array(self) -> Any:
        """int64[6] for the call to write to."""
        return self.place.array

    def cancel(self) -> None:
        """The call was refused, so that nothing was written."""
        _reports.give_back(self)

    def submit(self) -> None:
        """The call was made.

        Raises:
            InvalidRoutingError: something was invalid, and the call is to say so at once.
        """
        if not self.at_once:
            _reports.add(self)
            return
        self.framework.synchronize(self.cuda_index)
        message = self.message(Findings(*np.asarray(on_host(self.array)).tolist()))
        if message:
            self.array[:] = 0
            self.framework.synchronize(self.cuda_index)
        _reports.give_back(self)
        if message:
            raise InvalidRoutingError(message)

    def message(self, found: Findings) -> str:
        """The first thing that was invalid, in one line; empty if nothing was."""
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


class _Reports:
    """The reports of this process that nobody has read, and their memory."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free: dict[tuple[int, int], list[_Place]] = {}  # of a framework's id and a device
        self.submitted: list[Report] = []  # in the order of the calls
        self.num_unread = 0  # without those of captured calls, which stay
        self.num_found = 0
        self.first_message = ""

    def take(self, report: Report, topk_ids: Any) -> _Place:
        with self.lock:
            free = self.free.setdefault((id(report.framework), report.cuda_index), [])
            if not report.is_captured:
                if self.num_unread >= MAX_UNREAD:
                    self.read()
                if len(free) < _PIECE // 2:
                    free += self.new_piece(report, topk_ids, free)
            if not free:
                raise ValueError(
                    f"align_block_size: validate: expected a validated call on cuda:"
                    f"{report.cuda_index} before a graph is captured, to have memory for reports, "
                    "got none"
                )
            return free.pop()

    @staticmethod
    def new_piece(report: Report, topk_ids: Any, free: list[_Place]) -> list[_Place]:
        length = len(Findings._fields)
        memory = report.framework.zeros_int64(topk_ids, _PIECE * length).reshape(_PIECE, length)
        # Calls on any stream may write to it from now on.
        report.framework.synchronize(report.cuda_index)
        return [_Place(memory, row, array, free) for row, array in enumerate(memory)]

    def give_back(self, report: Report) -> None:
        with self.lock:
            report.place.free.append(report.place)

    def add(self, report: Report) -> None:
        with self.lock:
            self.submitted.append(report)
            self.num_unread += not report.is_captured

    def read(self) -> None:
        """Reads all reports, and zeroes what it has read, for the next call or replay to write."""
        devices = {(one.framework, one.cuda_index) for one in self.submitted}
        for framework, cuda_index in devices:
            if framework.is_capturing(cuda_index):
                raise RuntimeError("check: expected no graph to be captured meanwhile")
            framework.synchronize(cuda_index)
        on_hosts: dict[int, Any] = {}
        for report in self.submitted:
            memory, row, array, free = report.place
            if id(memory) not in on_hosts:
                on_hosts[id(memory)] = np.asarray(on_host(memory))
            findings = Findings._make(on_hosts[id(memory)][row].tolist())
            if message := report.message(findings):
                self.num_found += findings.num_invalid_ids + findings.num_invalid_map_entries
                self.first_message = self.first_message or message
                array[:] = 0
            if not report.is_captured:
                free.append(report.place)
        for framework, cuda_index in devices:
            framework.synchronize(cuda_index)
        self.submitted = [report for report in self.submitted if report.is_captured]
        self.num_unread = 0


_reports = _Reports()


def check(*, raise_invalid: bool = True) -> int:
    """Read what validated calls have reported since the last check, and forget it.

    Waits for the devices that such calls ran on. Calls in a captured graph report again at every
    replay. Must not be called while a graph is being captured.

    Returns:
        The number of invalid ids and map entries, 0 if all were good.

    Raises:
        InvalidRoutingError: something was invalid; the message has the first of it, in the order
            of the calls. Not with `raise_invalid` off.
    """
    with _reports.lock:
        _reports.read()
        found, message = _reports.num_found, _reports.first_message
        _reports.num_found, _reports.first_message = 0, ""
    if message and raise_invalid:
        raise InvalidRoutingError(message)
    return found
