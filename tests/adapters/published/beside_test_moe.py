"""What vLLM's own test of its layer imports besides the functions that Tessera's stand-in serves.

For `tests/kernels/moe/test_moe.py` of vLLM 0.9.2, beside which `run.py` puts this file as its
conftest. The reference, with which vLLM's file also compares another one, is a loop over experts.
Tests of quantised weights and of a whole model do not run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import _custom_ops
from vllm.model_executor.layers import fused_moe

_RUN = ("test_fused_moe", "test_moe_align_block_size_opcheck", "test_moe_sum")


def torch_moe(
    a: Any,
    w1: Any,
    w2: Any,
    score: Any,
    topk: int,
    global_num_experts: int = -1,
    expert_map: Any = None,
) -> Any:
    """The experts in the type of `a`, one after the other, added up in float32."""
    # Of equal scores the first, which torch's topk promises nowhere, and gives on a GPU.
    scores = score.softmax(-1, dtype=torch.float32).sort(dim=-1, descending=True, stable=True)
    weights, ids = (each[:, :topk] for each in scores)
    if expert_map is not None:
        ids = expert_map[ids]
    output = torch.zeros(a.shape, dtype=torch.float32, device=a.device)
    for expert in range(len(w1)):
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        if len(tokens):
            gate, up = (a[tokens] @ w1[expert].T).chunk(2, -1)
            y = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
            output.index_add_(0, tokens, y.float() * weights[tokens, slots, None])
    return output.to(a.dtype)


class _Anything(ModuleType):
    """A module with whatever name is asked for, for tests that do not run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{self.__name__}.{name}"


def _opcheck(op: Any, args: Any) -> Any:
    """As vLLM's; without a GPU not the check that asks torch for one."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if torch.version.cuda is not None:
        checks.append("test_aot_dispatch_dynamic")
    return torch.library.opcheck(op, args, test_utils=checks)


_PROVIDED: dict[str, dict[str, Any]] = {
    "tests": {},
    "tests.kernels": {},
    "tests.kernels.utils": {"opcheck": _opcheck, "stack_and_dev": None, "torch_moe": torch_moe},
    "vllm.config": {
        "VllmConfig": lambda: SimpleNamespace(scheduler_config=SimpleNamespace()),
        "set_current_vllm_config": contextlib.nullcontext,
    },
    f"{fused_moe.__name__}.moe_torch_iterative": {"fused_moe": torch_moe},
}
_UNUSED = (
    "transformers",
    "transformers.models",
    "transformers.models.mixtral",
    "transformers.models.mixtral.modeling_mixtral",
    "vllm.distributed",
    "vllm.distributed.parallel_state",
    "vllm.forward_context",
    "vllm.model_executor.layers.quantization",
    "vllm.model_executor.layers.quantization.utils",
    "vllm.model_executor.layers.quantization.utils.marlin_utils_fp4",
    "vllm.model_executor.layers.quantization.utils.marlin_utils_fp8",
    "vllm.model_executor.layers.quantization.utils.marlin_utils_test",
    "vllm.model_executor.layers.quantization.utils.quant_utils",
    "vllm.model_executor.models",
    "vllm.model_executor.models.mixtral",
)


def _provide() -> None:
    for name in (*_PROVIDED, *_UNUSED):
        module = _Anything(name)
        module.__path__ = []
        module.__dict__.update(_PROVIDED.get(name, {}))
        sys.modules[name] = module
    scalar_type = ModuleType("vllm.scalar_type")
    scalar_type.__dict__.update(ScalarType=object, scalar_types=_Anything("scalar_types"))
    sys.modules["vllm.scalar_type"] = scalar_type


def _register() -> None:
    """The ops that the tests call as torch's, with what `vllm._custom_ops` calls."""
    library = torch.library.Library("_moe_C", "DEF")
    schemas = {
        "moe_align_block_size": "(Tensor topk_ids, int num_experts, int block_size, "
        "Tensor(a!) sorted_token_ids, Tensor(b!) experts_ids, Tensor(c!) num_tokens_post_pad)",
        "moe_sum": "(Tensor input, Tensor(a!) output)",
    }
    for name, schema in schemas.items():
        library.define(f"{name}{schema} -> ()")
        for backend in ("CPU", "CUDA"):
            library.impl(name, getattr(_custom_ops, name), backend)
        library.impl(name, lambda *args: None, "Meta")
    _PROVIDED["tests"]["library"] = library  # which lives as long as the process


_provide()
_register()


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("markers", "flaky: of a plug-in that these tests do not need")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    others = [item for item in items if item.originalname not in _RUN]
    items[:] = [item for item in items if item.originalname in _RUN]
    config.hook.pytest_deselected(items=others)


@pytest.fixture(autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
