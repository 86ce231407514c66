"""What vLLM's own tests of its layers import besides the functions that Tessera's stand-in serves.

For the files of vLLM 0.9.2 that `run.py` lists, beside each of which it puts this file as the
conftest. Tests of weights in integers, of DeepGEMM and of a whole model do not run.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

# Of the folder beside this file where it is the conftest.
from published import references

_custom_ops: Any = importlib.import_module("vllm._custom_ops")
_FUSED_MOE = "vllm.model_executor.layers.fused_moe"
_RUN = (
    "test_fused_moe",
    "test_moe_align_block_size_opcheck",
    "test_moe_sum",
    "test_w8a8_block_fp8_fused_moe",
    "test_w8a8_fp8_fused_moe",
)


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
    "tests.kernels.moe": {},
    "tests.kernels.moe.utils": {"make_test_weights": references.make_test_weights},
    "tests.kernels.quant_utils": {
        "native_per_token_group_quant_fp8": references.quantised_groups,
        "native_w8a8_block_matmul": references.product_of_blocks,
    },
    "tests.kernels.utils": {
        "opcheck": _opcheck,
        "stack_and_dev": None,
        "torch_moe": references.torch_moe,
    },
    "vllm.config": {
        "VllmConfig": lambda: SimpleNamespace(scheduler_config=SimpleNamespace()),
        "set_current_vllm_config": contextlib.nullcontext,
    },
    "vllm.model_executor.layers.activation": {
        "SiluAndMul": lambda: SimpleNamespace(forward_native=references.silu_and_mul)
    },
    # With which vLLM's own file compares, too.
    f"{_FUSED_MOE}.moe_torch_iterative": {"fused_moe": references.torch_moe},
}
# In place of the same names above, with --reference float32.
_IN_FLOAT32: dict[str, dict[str, Any]] = {
    "tests.kernels.quant_utils": {
        "native_w8a8_block_matmul": references.product_of_blocks_in_float32
    },
    "vllm.model_executor.layers.activation": {
        "SiluAndMul": lambda: SimpleNamespace(forward_native=references.silu_and_mul_in_float32)
    },
}
_UNUSED = (
    "transformers",
    "transformers.models",
    "transformers.models.mixtral",
    "transformers.models.mixtral.modeling_mixtral",
    "vllm.distributed",
    "vllm.distributed.parallel_state",
    "vllm.forward_context",
    f"{_FUSED_MOE}.deep_gemm_moe",
    "vllm.model_executor.layers.quantization",
    "vllm.model_executor.layers.quantization.utils",
    "vllm.model_executor.layers.quantization.utils.marlin_utils_fp4",
    "vllm.model_executor.layers.quantization.utils.marlin_utils_fp8",
    "vllm.model_executor.layers.quantization.utils.marlin_utils_test",
    "vllm.model_executor.layers.quantization.utils.quant_utils",
    "vllm.model_executor.models",
    "vllm.model_executor.models.mixtral",
)


def _provide(reference: str) -> None:
    others = _IN_FLOAT32 if reference == "float32" else {}
    for name in (*_PROVIDED, *_UNUSED):
        module = _Anything(name)
        module.__path__ = []
        module.__dict__.update(_PROVIDED.get(name, {}) | others.get(name, {}))
        sys.modules[name] = module
    scalar_type = ModuleType("vllm.scalar_type")
    scalar_type.__dict__.update(ScalarType=object, scalar_types=_Anything("scalar_types"))
    sys.modules["vllm.scalar_type"] = scalar_type
    _custom_ops.scaled_fp8_quant = references.quantised_tokens
    # Not even imported where it is installed: its test is of vLLM's own layer.
    sys.modules["deep_gemm"] = None  # type: ignore[assignment]


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


_register()


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--reference", choices=("vllm", "float32"), default="vllm")


def pytest_configure(config: Any) -> None:
    _provide(config.getoption("--reference"))
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
