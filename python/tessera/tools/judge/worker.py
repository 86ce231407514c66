"""The process that makes the calls: a call may kill it, and the runner then restarts it."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera._library import torch_failure, torch_or_none
from tessera.tools.judge.call import Call
from tessera.tools.judge.forms import FORMS, Arguments, Arrays, Judged, judged_as
from tessera.tools.judge.implementation import load_implementation

# The initial value of the outputs and of the words around them: neither an index nor an expert.
POISON = -0x21524111
# Words before and after each output: whole pages, so that few writes go beyond them.
CANARIES = 1024
_MESSAGE_LENGTH = 400
OUTPUTS = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")


class Target(NamedTuple):
    """What to judge: names as on the command line, None if the worker is to detect it.

    folder: a folder that may contain the implementation's module.
    device: "cpu", "cuda", "cuda:N", or "auto": CUDA for torch tensors if there is a device.
    """

    implementation: str
    folder: str
    form: str | None
    arrays: Arrays | None
    device: str


class Detected(NamedTuple):
    """What the process detected: form, accepted optional arguments, arrays and device."""

    form: str
    accepted: frozenset[str]
    arrays: Arrays
    device: str

    @property
    def judged(self) -> Judged:
        """The form and the accepted arguments."""
        return Judged(FORMS[self.form], self.accepted)


class Refused(NamedTuple):
    """The reason why the implementation cannot be judged at all."""

    message: str


class Outcome(NamedTuple):
    """The outcome of a call.

    outputs: by name; empty if the call returned none.
    trampled: the outputs with writes to the memory around them.
    changed: the inputs that were written to.
    altered: the outputs of the previous call that have changed since.
    error: type and message of the exception that the call raised.
    malformed: a description of a return value that has the wrong form.
    lost: why the process can no longer use the device.
    seconds: duration of the call.
    """

    outputs: dict[str, npt.NDArray[Any]]
    trampled: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    error: tuple[str, str] | None = None
    malformed: str = ""
    lost: str = ""
    seconds: float = 0.0


def serve(connection: Connection, target: Target, log: str) -> None:
    """Send what was detected, then answer each call with its outcome, until None is received."""
    begin_serving(log)
    try:
        function = load_implementation(target.implementation, target.folder)
        judged = judged_as(function, target.form)
        library = _library_of(target, judged)
    except (ValueError, ImportError) as error:
        connection.send(Refused(str(error)))
        return
    arrays: Arrays = "numpy" if library.torch is None else "torch"
    connection.send(Detected(judged.form.name, judged.accepted, arrays, library.device))
    before, kept = Outcome({}), dict[str, Any]()
    while (request := connection.recv()) is not None:
        started = time.perf_counter()
        outcome, made = _made(function, library, *request)
        outcome = outcome._replace(seconds=time.perf_counter() - started)
        if not outcome.lost:
            outcome = outcome._replace(altered=differing(before.outputs, library.all_on_host(kept)))
        connection.send(outcome)
        if outcome.lost:
            return
        before, kept = outcome, made


def begin_serving(log: str) -> None:
    """Keep signals and the implementation's output from the judge's."""
    os.setsid()  # the judge ends this process with all processes that it may have started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the judge gets the signal and ends this process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nowhere, 1)
    os.dup2(errors, 2)


def differing(
    one: dict[str, npt.NDArray[Any]], other: dict[str, npt.NDArray[Any]]
) -> tuple[str, ...]:
    """The names of arrays that are in both and differ."""
    return tuple(name for name in one if name in other and not _equal(one[name], other[name]))


def _equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def _library_of(target: Target, judged: Judged) -> ArrayLibrary:
    usual: Arrays = "torch" if target.device.startswith("cuda") else judged.form.arrays
    arrays = target.arrays or usual
    if arrays == "torch" and torch_or_none() is None:
        failure = torch_failure()
        which = f"cannot be imported ({failure})" if failure else "is not installed"
        remedy = "" if failure else "pip install torch, or "
        raise ImportError(
            f"--arrays: the form {judged.form.name} is given torch's tensors, and torch {which}: "
            f"{remedy}give it NumPy's arrays with --arrays numpy"
        )
    return ArrayLibrary(arrays, target.device)


class ArrayLibrary:
    """NumPy or torch on one device: makes the inputs of calls, and reads what they return."""

    def __init__(self, arrays: Arrays, device: str) -> None:
        self.torch: Any = None
        self.device = "cpu"
        if arrays == "numpy":
            if device.startswith("cuda"):
                raise ValueError(f"--arrays: expected torch with --device {device}, got numpy")
            return
        self.torch = torch = torch_or_none()
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: unavailable: torch finds no CUDA device")
        if device == "auto" and torch.cuda.is_available():
            self.device = "cuda"
        elif device.startswith("cuda"):
            self.device = device

    def array(self, host: npt.NDArray[Any]) -> Any:
        """The array in the framework, on the device."""
        return host if self.torch is None else self.torch.from_numpy(host).to(self.device)

    def host(self, array: Any) -> npt.NDArray[Any]:
        """A copy as a NumPy array."""
        return np.array(array.detach().cpu().numpy() if self.torch is not None else array)

    def all_on_host(self, arrays: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """A copy of each."""
        return {name: self.host(array) for name, array in arrays.items()}

    def is_array(self, value: object) -> bool:
        """Whether the value is an array of the framework."""
        return isinstance(value, np.ndarray if self.torch is None else self.torch.Tensor)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            self.torch.cuda.synchronize()


class _Buffers:
    """Poisoned arrays to write to, each with canaries before and after it."""

    def __init__(self, library: ArrayLibrary, lengths: dict[str, tuple[int, Any]]) -> None:
        self._library = library
        self._memory = {
            name: library.array(np.full(length + 2 * CANARIES, POISON, dtype))
            for name, (length, dtype) in lengths.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._memory[name][CANARIES:-CANARIES]

    def contents(self) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
        """The contents of each array, and the names of those whose canaries were overwritten."""
        found = {name: self._library.host(memory) for name, memory in self._memory.items()}
        trampled = [
            name
            for name, memory in found.items()
            if np.any(memory[:CANARIES] != POISON) or np.any(memory[-CANARIES:] != POISON)
        ]
        inside = {name: memory[CANARIES:-CANARIES] for name, memory in found.items()}
        return inside, tuple(trampled)


def _made(
    function: Any, library: ArrayLibrary, call: Call, arguments: Arguments
) -> tuple[Outcome, dict[str, Any]]:
    """Make the call; returns its outcome, and its output arrays themselves."""
    reports = call.report_arrays()
    lengths: dict[str, tuple[int, Any]] = {
        name: (length, np.int32) for name, length in arguments.buffers.items()
    }
    lengths |= {name: (len(array), array.dtype) for name, array in reports.items()}
    buffers = _Buffers(library, lengths)
    inputs = {"topk_ids": library.array(call.topk_ids.copy())}
    if call.expert_map is not None:
        inputs["expert_map"] = library.array(call.expert_map.copy())

    def value(name: str) -> Any:
        if name == "out":
            return tuple(buffers[one] for one in OUTPUTS)
        if name in inputs:
            return inputs[name]
        return buffers[name] if name in lengths else arguments.values[name]

    if not arguments.buffers:
        poison_free_memory(library, arguments.output_lengths)
    try:
        returned = function(
            *(value(name) for name in arguments.positional),
            **{name: value(name) for name in arguments.keywords},
        )
        library.synchronize()
    except BaseException as error:
        return failed(library, error), {}
    found, trampled = buffers.contents()
    found.pop("cumsum_buffer", None)
    made = {name: buffers[name] for name in found}
    if not arguments.buffers:
        if malformed := malformed_in(library, returned):
            return Outcome({}, malformed=malformed), {}
        made |= dict(zip(OUTPUTS, returned, strict=True))
        found |= {name: library.host(made[name]) for name in OUTPUTS}
    return Outcome(found, trampled, changed_inputs(call, library.all_on_host(inputs))), made


def changed_inputs(call: Call, inputs: dict[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    """The names of the inputs that have changed."""
    originals = {"topk_ids": call.topk_ids}
    if call.expert_map is not None:
        originals["expert_map"] = call.expert_map
    return differing(originals, inputs)


def poison_free_memory(library: ArrayLibrary, lengths: dict[str, int]) -> None:
    """Poison free memory, so that outputs left unwritten are noticed."""
    for length in lengths.values():
        library.array(np.full(length, POISON, np.int32))


def failed(library: ArrayLibrary, error: BaseException) -> Outcome:
    """The outcome of a call that raised this."""
    message = (str(error).strip().splitlines() or [""])[0][:_MESSAGE_LENGTH]
    try:
        library.synchronize()
    except Exception:  # every later use of the device raises too
        return Outcome({}, lost=message)
    return Outcome({}, error=(type(error).__name__, message))


def malformed_in(library: ArrayLibrary, returned: Any) -> str:
    """What is wrong with the form of the return value; empty if nothing is."""
    if not isinstance(returned, (tuple, list)):
        return f"a value of type {type(returned).__name__}"
    if len(returned) != len(OUTPUTS):
        return f"{len(returned)} values"
    for name, array in zip(OUTPUTS, returned, strict=True):
        if not library.is_array(array):
            return f"{name} of type {type(array).__name__}"
        on = "cpu" if library.torch is None else array.device.type
        if on != library.device.partition(":")[0]:
            return f"{name} on {on}"
        try:
            dtype = library.host(array).dtype
        except Exception as error:
            return f"{name} that NumPy cannot read: {type(error).__name__}: {error}"
        if dtype.kind not in "biuf" or not dtype.isnative:
            return f"{name} of dtype {dtype}"
        if not (array.flags.c_contiguous if library.torch is None else array.is_contiguous()):
            return f"{name} that is not contiguous"
    return ""
