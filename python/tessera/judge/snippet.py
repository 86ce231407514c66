"""Writes a call of an implementation as Python that can be pasted."""

from __future__ import annotations

from tessera.judge.call import Call
from tessera.judge.forms import Judged, arguments_of
from tessera.judge.worker import Plan, Told

_RESULT = "sorted_token_ids, expert_ids, num_tokens_post_pad"
# What an array to write to holds before: neither an index nor an expert.
_UNWRITTEN = -7


def snippet(call: Call, told: Told, plan: Plan) -> str:
    """The program that makes this call, without anything of the judge."""
    judged: Judged = told.judged
    arguments = arguments_of(judged, call)
    module, _, function = plan.implementation.partition(":")
    inputs = ["topk_ids"] + (["expert_map"] if call.expert_map is not None else [])
    lines = [f"{name} = {_placed(call.written(name), told)}" for name in inputs]
    for name, length in _buffers(call, arguments.buffers, judged).items():
        dtype = "np.float64" if name == "statistics" else "np.int32"
        unwritten = f"np.full({length}, {_UNWRITTEN}, {dtype})"
        lines.append(f"{name} = {_placed(unwritten, told)}")
    values = {name: repr(value) for name, value in arguments.values.items()}
    values["out"] = f"({_RESULT})"
    positional = [values.get(name, name) for name in arguments.positional]
    keywords = [f"{name}={values.get(name, name)}" for name in arguments.keywords]
    made = f"{function}({', '.join([*positional, *keywords])})"
    lines.append(made if arguments.buffers else f"{_RESULT} = {made}")
    written = "\n".join(lines)
    imports = ["import numpy as np"]
    if told.arrays == "torch":
        imports.append("import torch")
    if "case_inputs(" in written:
        imports.append("from tessera.contract import case_inputs, case_named")
    if "." in function:
        function, _, _ = function.partition(".")
    imports.append(f"from {module} import {function}")
    return "\n".join([*imports, "", written])


def _buffers(call: Call, buffers: dict[str, int], judged: Judged) -> dict[str, int]:
    reports = {name: len(array) for name, array in call.report_arrays().items()}
    return buffers | {name: length for name, length in reports.items() if name in judged.accepted}


def _placed(expression: str, told: Told) -> str:
    if told.arrays == "numpy":
        return expression
    tensor = f"torch.from_numpy({expression})"
    return tensor if told.device == "cpu" else f'{tensor}.to("{told.device}")'
