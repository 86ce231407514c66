"""The process that makes the calls: it may be killed by them, and is started again."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera._library import torch_failure, torch_or_none
from tessera.judge.call import Call
from tessera.judge.forms import FORMS, Arguments, Arrays, Judged, judged_as
from tessera.judge.implementation import load_implementation

# In every word of the outputs before a call, and around them: neither an index nor an expert.
POISON = -0x21524111
# Words before and after each output. Whole pages of them, so that little is hit behind them.
_CANARIES = 1024
_MESSAGE_LENGTH = 400
_OUTPUTS = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")


class Plan(NamedTuple):
    """What is judged: names as on the command line, None where it is to be told.

    folder: where the implementation's module may lie.
    device: "cpu", "cuda", "cuda:N", or "auto": CUDA for torch's tensors where there is one.
    """

    implementation: str
    folder: str
    form: str | None
    arrays: Arrays | None
    device: str


class Told(NamedTuple):
    """What the process found: the form, the optional arguments that it takes, arrays and device."""

    form: str
    accepted: frozenset[str]
    arrays: Arrays
    device: str

    @property
    def judged(self) -> Judged:
        """The same with the form itself."""
        return Judged(FORMS[self.form], self.accepted)


class Refused(NamedTuple):
    """Why the implementation cannot be judged at all."""

    message: str


class Outcome(NamedTuple):
    """What came of a call.

    runs: the outputs by name; a second time if the same call had others then.
    trampled: the outputs beside which memory was written.
    changed: the inputs that were written to.
    error: type and message of what the call raised.
    malformed: what is wrong with the form of what it returned.
    lost: why the device is of no more use to the process.
    seconds: how long the call took, both times.
    """

    runs: tuple[dict[str, npt.NDArray[Any]], ...] = ()
    trampled: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    error: tuple[str, str] | None = None
    malformed: str = ""
    lost: str = ""
    seconds: float = 0.0


def serve(connection: Connection, plan: Plan, log: str) -> None:
    """Tell what there is to judge, then answer each call with its outcome, until told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the judge is told, and ends this process
    _redirect_output(log)
    try:
        function = load_implementation(plan.implementation, plan.folder)
        judged = judged_as(function, plan.form)
        place = _Place(plan.arrays or _usual_arrays(plan, judged), plan.device)
    except (ValueError, ImportError) as error:
        connection.send(Refused(str(error)))
        return
    arrays: Arrays = "numpy" if place.torch is None else "torch"
    connection.send(Told(judged.form.name, judged.accepted, arrays, place.device))
    while (request := connection.recv()) is not None:
        outcome = _outcome(function, place, *request)
        connection.send(outcome)
        if outcome.lost:
            return


def _redirect_output(log: str) -> None:
    """What the implementation prints must not stand among the judge's own lines."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nowhere, 1)
    os.dup2(errors, 2)


def _usual_arrays(plan: Plan, judged: Judged) -> Arrays:
    return "torch" if plan.device.startswith("cuda") else judged.form.arrays


class _Place:
    """Makes the arrays that the implementation is given, and reads those that it gives back."""

    def __init__(self, arrays: Arrays, device: str) -> None:
        self.torch: Any = None
        self.device = "cpu"
        if arrays == "numpy":
            if device.startswith("cuda"):
                raise ValueError(f"--arrays: expected torch with --device {device}, got numpy")
            return
        torch = torch_or_none()
        if torch is None:
            raise ImportError(torch_failure() or "No module named 'torch'")
        self.torch = torch
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: unavailable: torch finds no CUDA device")
        if device == "auto" and torch.cuda.is_available():
            self.device = "cuda"
        elif device.startswith("cuda"):
            self.device = device

    def array(self, host: npt.NDArray[Any]) -> Any:
        return host if self.torch is None else self.torch.from_numpy(host).to(self.device)

    def host(self, array: Any) -> npt.NDArray[Any]:
        """A copy of it in NumPy."""
        return np.array(array.detach().cpu().numpy() if self.torch is not None else array)

    def is_array(self, value: object) -> bool:
        return isinstance(value, np.ndarray if self.torch is None else self.torch.Tensor)

    def synchronize(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()


class _Buffers:
    """Poisoned arrays to write to, each in the middle of memory that must stay as it is."""

    def __init__(self, place: _Place, lengths: dict[str, tuple[int, Any]]) -> None:
        self._place = place
        self._memory = {
            name: place.array(np.full(length + 2 * _CANARIES, POISON, dtype))
            for name, (length, dtype) in lengths.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._memory[name][_CANARIES:-_CANARIES]

    def contents(self) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
        """What stands in each, and the names of those that were written beside."""
        found = {name: self._place.host(memory) for name, memory in self._memory.items()}
        trampled = [
            name
            for name, memory in found.items()
            if np.any(memory[:_CANARIES] != POISON) or np.any(memory[-_CANARIES:] != POISON)
        ]
        inside = {name: memory[_CANARIES:-_CANARIES] for name, memory in found.items()}
        return inside, tuple(trampled)


def _outcome(function: Any, place: _Place, call: Call, arguments: Arguments) -> Outcome:
    """Make the call twice."""
    started = time.perf_counter()
    first = _made(function, place, call, arguments)
    if first.error or first.malformed or first.lost:
        return first._replace(seconds=time.perf_counter() - started)
    second = _made(function, place, call, arguments)
    seconds = time.perf_counter() - started
    if second.error or second.malformed or second.lost:
        return second._replace(seconds=seconds)
    runs = first.runs + (() if _equal(first.runs[0], second.runs[0]) else second.runs)
    trampled = tuple(dict.fromkeys(first.trampled + second.trampled))
    changed = tuple(dict.fromkeys(first.changed + second.changed))
    return Outcome(runs, trampled, changed, seconds=seconds)


def _equal(one: dict[str, npt.NDArray[Any]], other: dict[str, npt.NDArray[Any]]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _made(function: Any, place: _Place, call: Call, arguments: Arguments) -> Outcome:
    reports = call.report_arrays()
    lengths: dict[str, tuple[int, Any]] = {
        name: (length, np.int32) for name, length in arguments.buffers.items()
    }
    lengths |= {name: (len(array), array.dtype) for name, array in reports.items()}
    buffers = _Buffers(place, lengths)
    inputs = {"topk_ids": place.array(call.topk_ids.copy())}
    if call.expert_map is not None:
        inputs["expert_map"] = place.array(call.expert_map.copy())

    def value(name: str) -> Any:
        if name == "out":
            return tuple(buffers[one] for one in _OUTPUTS)
        if name in inputs:
            return inputs[name]
        return buffers[name] if name in lengths else arguments.values[name]

    if not arguments.buffers:
        _poison_free_memory(place, arguments.output_lengths)
    try:
        returned = function(
            *(value(name) for name in arguments.positional),
            **{name: value(name) for name in arguments.keywords},
        )
        place.synchronize()
    except BaseException as error:
        return _failed(place, error)
    found, trampled = buffers.contents()
    found.pop("cumsum_buffer", None)
    if not arguments.buffers:
        if malformed := _malformed(place, returned):
            return Outcome(malformed=malformed)
        found |= {name: place.host(array) for name, array in zip(_OUTPUTS, returned, strict=True)}
    originals = {"topk_ids": call.topk_ids, "expert_map": call.expert_map}
    changed = [
        name
        for name, array in inputs.items()
        if not np.array_equal(place.host(array), np.asarray(originals[name]))
    ]
    return Outcome((found,), trampled, tuple(changed))


def _poison_free_memory(place: _Place, lengths: dict[str, int]) -> None:
    """Memory that the implementation takes and does not write had better not look written."""
    for length in lengths.values():
        place.array(np.full(length, POISON, np.int32))


def _failed(place: _Place, error: BaseException) -> Outcome:
    message = (str(error).strip().splitlines() or [""])[0][:_MESSAGE_LENGTH]
    try:
        place.synchronize()
    except Exception:  # every later use of the device raises too
        return Outcome(lost=message)
    return Outcome(error=(type(error).__name__, message))


def _malformed(place: _Place, returned: Any) -> str:
    """What is wrong with the form of what the implementation returned; empty if nothing is."""
    if not isinstance(returned, (tuple, list)):
        return f"a value of type {type(returned).__name__}"
    if len(returned) != len(_OUTPUTS):
        return f"{len(returned)} values"
    for name, array in zip(_OUTPUTS, returned, strict=True):
        if not place.is_array(array):
            return f"{name} of type {type(array).__name__}"
    return ""
