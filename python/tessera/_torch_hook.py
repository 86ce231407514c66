"""Calls that torch traces become calls of a torch op; imports torch only for such a call."""

from __future__ import annotations

from typing import Any

from tessera._arrays import refused_array
from tessera._framework import Framework
from tessera._op import Op
from tessera._outputs import require_outputs
from tessera._torch_registry import TORCH_OPS, TorchOp


def register(torch_op: TorchOp) -> None:
    """Let torch see calls of this function as one op."""
    name = torch_op.op.name
    TORCH_OPS[name] = torch_op

    def in_graph(*args: Any, **kwargs: Any) -> Any:
        from tessera.torch_ops import call_in_graph

        return call_in_graph(name, *args, **kwargs)

    # Dynamo reads this attribute, so that an eager call need not find out whether it is traced.
    torch_op.function.__dict__["_torchdynamo_inline"] = in_graph


def is_traced(framework: Framework) -> bool:
    """Whether torch traces calls now, so that it must see one op."""
    return framework.num_modes is not None and bool(framework.num_modes() or framework.is_tracing())


def call_traced(op: Op, source: Any, out: Any, **arguments: Any) -> Any:
    """Call the torch op instead, which a trace can record and run later."""
    if out is not None:
        require_outputs(op, out)
    from tessera.torch_ops import call_in_graph

    try:
        return call_in_graph(op.name, source, out=out, **arguments)
    except (NotImplementedError, TypeError) as error:
        # Some subclasses of tensors refuse ops that they do not know.
        refused = refused_array(op.name, {op.inputs[0].name: source})
        if refused is None or str(error).startswith(f"{op.name}: "):
            raise
        try:
            raise refused from error
        finally:
            del refused  # its traceback holds this frame, and so the arrays
