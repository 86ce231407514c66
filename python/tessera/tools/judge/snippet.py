"""Writes calls of an implementation as Python that can be pasted."""

from __future__ import annotations

from itertools import groupby

from tessera.tools.judge.call import Call
from tessera.tools.judge.faults import Fault
from tessera.tools.judge.forms import REPORTS, arguments_of
from tessera.tools.judge.worker import CANARIES, OUTPUTS, Detected, Target

# The initial value of output arrays: neither an index nor an expert.
UNWRITTEN = -7
# The variables of a program that show a fault, besides arguments and outputs.
FIRST, KEPT, AS_MADE, GIVEN, RETURNED, AROUND = (
    "first",
    "kept",
    "as_made",
    "given",
    "returned",
    "around_",
)
# Number of elements of an array that are printed, and how many of them precede the fault.
_PRINTED, _BEFORE = 16, 3


def snippet(
    program: tuple[Call, ...],
    fault: Fault,
    detected: Detected,
    target: Target,
    *,
    dirty: bool = False,
) -> str:
    """The source of a program that makes these calls and prints the fault of the last one.

    dirty: writes to free memory before the last call, which may then allocate it.
    """
    return _Writer(program, fault, detected, target).text(dirty)


class _Writer:
    def __init__(
        self, program: tuple[Call, ...], fault: Fault, detected: Detected, target: Target
    ) -> None:
        self._program = program
        self._fault = fault
        self._detected = detected
        self._module, _, self._function = target.implementation.partition(":")
        self._is_numpy = detected.arrays == "numpy"
        self._copy = "copy" if self._is_numpy else "clone"

    def text(self, dirty: bool) -> str:
        *earlier, last = self._program
        lines: list[str] = []
        rule, separate = self._fault.rule, []
        if earlier and rule in ("repeatable", "outputs_kept"):
            *earlier, before = earlier
            separate = [*self._inputs(before, earlier), *self._call(before), *self._remembered()]
        for _, equal in groupby(earlier, lambda call: call.identity):
            calls = list(equal)
            lines += self._inputs(calls[0], [])
            made = self._call(calls[0])
            if len(calls) > 1:
                lines.append(f"for _ in range({len(calls)}):")
                made = [f"    {line}" for line in made]
            lines += made
        lines += separate
        lines += self._inputs(last, self._program[:-1])
        if dirty:
            lines += self._dirtied(last)
        lines += [*self._call(last, is_last=True), *self._printed()]
        written = "\n".join(lines)
        imports = ["import numpy as np"]
        if not self._is_numpy:
            imports.append("import torch")
        if "case_inputs(" in written:
            imports.append("from tessera.contract import case_inputs, case_named")
        imports.append(f"from {self._module} import {self._function.partition('.')[0]}")
        return "\n".join([*imports, "", written])

    def _inputs(self, call: Call, before: list[Call] | tuple[Call, ...]) -> list[str]:
        """The inputs of a call; nothing if the call before it has the same ones."""
        if before and before[-1].identity == call.identity and self._fault.rule != "inputs_kept":
            return []
        names = ["topk_ids"] + (["expert_map"] if call.expert_map is not None else [])
        return [f"{name} = {self._placed(call.written(name))}" for name in names]

    def _call(self, call: Call, *, is_last: bool = False) -> list[str]:
        arguments, lines = arguments_of(self._detected.judged, call), []
        reports = {name: len(array) for name, array in call.report_arrays().items()}
        accepted = self._detected.accepted
        buffers = arguments.buffers | {n: size for n, size in reports.items() if n in accepted}
        guarded = is_last and self._fault.rule == "memory_kept"
        for name, length in buffers.items():
            dtype = "np.float64" if name == "statistics" else "np.int32"
            size = length + 2 * CANARIES if guarded else length
            memory = self._placed(f"np.full({size}, {UNWRITTEN}, {dtype})")
            lines.append(f"{AROUND if guarded else ''}{name} = {memory}")
            if guarded:
                lines.append(f"{name} = {AROUND}{name}[{CANARIES}:-{CANARIES}]")
        rule, changed = self._fault.rule, self._fault.array
        if is_last and rule == "inputs_kept":
            lines.append(f"{GIVEN} = {changed}.{self._copy}()")
        values = {name: repr(value) for name, value in arguments.values.items()}
        values["out"] = f"({', '.join(OUTPUTS)})"
        positional = [values.get(name, name) for name in arguments.positional]
        keywords = [f"{name}={values.get(name, name)}" for name in arguments.keywords]
        made = f"{self._function}({', '.join([*positional, *keywords])})"
        if is_last and rule == "output_form":
            made = f"{RETURNED} = {made}"
        elif not arguments.buffers:
            made = f"{', '.join(OUTPUTS)} = {made}"
        return [*lines, made]

    def _remembered(self) -> list[str]:
        """Lines that keep the outputs of a call for a comparison after the next one."""
        outputs = f"({', '.join(self._outputs())})"
        if self._fault.rule == "repeatable":
            return [f"{FIRST} = [array.{self._copy}() for array in {outputs}]"]
        return [
            f"{KEPT} = {outputs}",
            f"{AS_MADE} = [array.{self._copy}() for array in {KEPT}]",
        ]

    def _outputs(self) -> tuple[str, ...]:
        return (*OUTPUTS, *REPORTS) if self._program[-1].reports else OUTPUTS

    def _printed(self) -> list[str]:
        """Lines that print the fault, if the call ends at all."""
        rule, array = self._fault.rule, self._fault.array
        equal = "np.array_equal" if self._is_numpy else "torch.equal"
        if rule == "output_form":
            return [f"print({RETURNED})"]
        if rule == "inputs_kept":
            return [f"print({equal}({array}, {GIVEN}))"]
        if rule == "memory_kept":
            memory = f"{AROUND}{array}"
            around = [f"{memory}[:{CANARIES}]", f"{memory}[-{CANARIES}:]"]
            return [f"print({', '.join(f'({one} != {UNWRITTEN}).sum()' for one in around)})"]
        if rule == "output_sizes":
            return [f"print({array}.dtype, {array}.shape)"]
        pairs = {"repeatable": f"({', '.join(self._outputs())}), {FIRST}"}
        pairs["outputs_kept"] = f"{KEPT}, {AS_MADE}"
        if rule in pairs and len(self._program) > 1:
            return [f"print([{equal}(one, other) for one, other in zip({pairs[rule]})])"]
        if not array:
            return []
        start = max(0, self._fault.position - _BEFORE)
        return [f"print({array}[{start or ''}:{start + _PRINTED}])"]

    def _dirtied(self, call: Call) -> list[str]:
        """Lines that allocate memory of the outputs' sizes, write to it and free it."""
        lengths = ", ".join(map(str, call.output_lengths().values()))
        unwritten = self._placed(f"np.full(length, {UNWRITTEN}, np.int32)")
        return [f"for length in ({lengths}):", f"    {unwritten}"]

    def _placed(self, expression: str) -> str:
        if self._is_numpy:
            return expression
        tensor = f"torch.from_numpy({expression})"
        device = self._detected.device
        return tensor if device == "cpu" else f'{tensor}.to("{device}")'
