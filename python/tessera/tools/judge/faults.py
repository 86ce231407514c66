"""Faults in the outcome of a call: broken rules of the contract, and of calling it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.contract import Rule, Violation, contract_violations, rules
from tessera.tools.judge.call import Call
from tessera.tools.judge.process import Death
from tessera.tools.judge.worker import Outcome, differing

# Rules that the checker cannot check, as it sees only inputs and outputs.
CALLING_RULES = (
    Rule("no_crash", "After a call the process is alive, and its device can still be used."),
    Rule("no_hang", "A call comes to an end."),
    Rule("no_exception", "A call in the op's domain raises nothing, whatever its ids."),
    Rule("output_form", "A call returns three arrays, of the framework of its inputs."),
    Rule("inputs_kept", "The inputs are as they were before the call."),
    Rule("memory_kept", "No memory beside the caller's output arrays is written."),
    Rule("repeatable", "Two equal calls have equal outputs."),
    Rule("outputs_kept", "The outputs of a call stay as they are when the next one is made."),
)


def judged_rules() -> list[Rule]:
    """All rules that an implementation is judged by: the rules of calling, then the contract's."""
    return [*CALLING_RULES, *rules()]


class Fault(NamedTuple):
    """A rule that a call breaks.

    kind: distinguishes faults of the same rule, such as exceptions.
    message: what was expected and what came.
    outputs: the outputs that break the rule, if it is about outputs.
    array, position: the argument or output at fault, and the first position that breaks the rule.
    """

    rule: str
    kind: str
    message: str
    outputs: dict[str, npt.NDArray[Any]] | None = None
    array: str = ""
    position: int = 0

    @property
    def num_calls(self) -> int:
        """The number of equal calls that break the rule, if no earlier calls contribute."""
        return 2 if self.rule == "repeatable" else 1

    @property
    def key(self) -> tuple[str, str]:
        """Rule and kind: faults of the same finding have the same key."""
        return self.rule, self.kind


def faults_of(call: Call, outcome: Outcome | Death, equal: Outcome | None) -> list[Fault]:
    """The rules that the call breaks. `equal`: the outcome of the equal call just before it."""
    if isinstance(outcome, Death):
        return [fault_of_death(outcome)]
    if outcome.error:
        kind, text = outcome.error
        return [Fault("no_exception", kind, f"raised {kind}: {text}")]
    if outcome.malformed:
        message = f"expected three arrays, got {outcome.malformed}"
        return [Fault("output_form", "", message)]
    found: dict[str, Fault] = {}
    for name in outcome.changed:
        found["inputs_kept"] = Fault("inputs_kept", "", f"{name} was written to", array=name)
    for name in outcome.trampled:
        message = f"memory beside {name} was written"
        found["memory_kept"] = Fault("memory_kept", "", message, array=name)
    for name in outcome.altered:
        message = f"{name} of the call before was written to"
        found["outputs_kept"] = Fault("outputs_kept", "", message, array=name)
    outputs = outcome.outputs
    for each in _violations(call, outputs):
        message = each.message
        if each.rule == "output_sizes":
            message = _size_message(call, outputs, each.array)
        fault = Fault(each.rule, "", message, outputs, each.array, each.position)
        found.setdefault(each.rule, fault)
    if equal is not None and (names := differing(equal.outputs, outputs)):
        # Distinguishes outputs that differ only in the order inside groups.
        order_alone = names == ("sorted_token_ids",) and found.keys() <= {"stable_order"}
        order_alone &= {each.rule for each in _violations(call, equal.outputs)} <= {"stable_order"}
        kind = "order" if order_alone else ""
        message = f"{', '.join(names)} differed between two equal calls"
        found["repeatable"] = Fault("repeatable", kind, message, outputs)
    return list(found.values())


def fault_of_death(death: Death) -> Fault:
    """The rule that a call breaks that its process did not survive."""
    words = f": {death.last_words}" if death.last_words else ""
    if death.hung is not None:
        return Fault("no_hang", "", f"the call was ended after {death.hung:.0f} s{words}")
    return Fault("no_crash", death.how, f"the process died with {death.how}{words}")


def _size_message(call: Call, outputs: dict[str, npt.NDArray[Any]], name: str) -> str:
    found, least = outputs[name], call.output_lengths()[name]
    expected = f"a contiguous int32[{least}] or a longer one"
    return f"output_sizes: {name}: expected {expected}, got {found.dtype}{list(found.shape)}"


def _violations(call: Call, outputs: dict[str, npt.NDArray[Any]]) -> list[Violation]:
    """All violations; outputs of a wrong integer type are also checked as int32."""
    found = _checked(call, outputs)
    if [each.rule for each in found] != ["output_sizes"]:
        return found
    as_int32 = {
        name: array.astype(np.int32) if array.dtype.kind in "iu" else array
        for name, array in outputs.items()
    }
    more = _checked(call, as_int32)
    return found + [each for each in more if each.rule != "output_sizes"]


def _checked(call: Call, outputs: dict[str, npt.NDArray[Any]]) -> list[Violation]:
    given: dict[str, Any] = dict(outputs)
    result = tuple(given.pop(name) for name in call.output_lengths())
    return contract_violations(call.topk_ids, result, **call.contract_options(), **given)
