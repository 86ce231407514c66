"""A GPU for tests of `tessera bench --op fused_experts`: a clock that replays of graphs advance.

The tensors are on the host, and a graph knows its contender alone. Engines are modules that call
the reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.tools.bench import driver, methods
from tessera.tools.bench.bandwidth import Bandwidth
from tessera.tools.bench.ops import fused_experts_cuda, fused_experts_engines
from tessera.tools.bench.ops.fused_experts_cuda import OP, make_problem
from tessera.tools.bench.ops.fused_experts_inputs import Shape

TINY = [Shape("tiny", 8, 2, 64, 32, "bfloat16", tokens) for tokens in (1, 5, 1024, 4096)]


def on_host(shape: Shape, device: str, seed: int, *ids: Any, **options: Any) -> Any:
    return make_problem(shape, "cpu", seed, *ids, **options)


HOST_OP = dataclasses.replace(
    OP,
    make_problem=on_host,
    quantized=dataclasses.replace(OP.quantized, make_problem=on_host),
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock; `us_of` has the microseconds of a replay by contender, else 1000 of each.

    `capability` is the compute capability.
    """
    state = SimpleNamespace(us=0.0, us_of={}, replays=[], slept=0, capability=(9, 0))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = state.us

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return (end.at - self.at) / 1e3

    def captured(torch: Any, run: Callable[[], Any], times: int) -> Any:
        assert times == 1
        run()
        name = state.names.pop(0)

        def replay() -> None:
            state.replays.append(name)
            state.us += state.us_of.get(name, 1000.0)

        return SimpleNamespace(replay=replay)

    def of_long_calls(calls: Any, sample: Any) -> Any:
        state.names = list(calls)
        return long_calls(calls, sample)

    long_calls = methods._of_long_calls
    fakes = {
        "Event": Event,
        "Stream": object,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "get_device_capability": lambda: state.capability,
        "_sleep": lambda cycles: setattr(state, "slept", state.slept + 1),
    }
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(methods, "captured", captured)
    monkeypatch.setattr(methods, "_of_long_calls", of_long_calls)
    monkeypatch.setattr(fused_experts_cuda, "read_bandwidth", lambda: Bandwidth(1e12, "a test"))
    monkeypatch.setattr(driver, "description", lambda device, commit: {"commit": commit})
    yield state


# The engines' modules, which compute what they ought to.
_ENGINES = {
    "vllm/__init__.py": "",
    "vllm/config.py": """
import contextlib, os
current = None
class VllmConfig:
    pass
@contextlib.contextmanager
def set_current_vllm_config(config):
    global current
    current = config
    yield
    current = None
""",
    "vllm/model_executor/layers/fused_moe/fused_moe.py": """
import os
import torch
from vllm import config
factor, environment = 1.0, dict(os.environ)
quantized = []
def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, quant_config=None):
    assert isinstance(config.current, config.VllmConfig)
    assert topk_weights.dtype == torch.float32 and topk_ids.dtype == torch.int32
    from tessera.tools.bench.ops.fused_experts_inputs import Inputs
    from tessera.tools.bench.ops.fused_experts_inputs import reference
    inputs = Inputs(hidden_states, w1, w2, topk_weights, topk_ids)
    tokens = torch.arange(len(hidden_states))
    weights_of = None
    if quant_config is not None:
        quantized.append(quant_config)
        w13 = dequantized(w1, quant_config["w1_scale"], 2)
        w2 = dequantized(w2, quant_config["w2_scale"], 1)
        weights_of = lambda expert: (w13(expert), w2(expert))
    return (factor * reference(inputs, tokens, weights_of)).to(hidden_states.dtype)
def dequantized(values, scales, halves):
    from tessera.tools.bench.ops.fused_experts_fp8 import Fp8Matrices
    of_blocks = scales.ndim == 3 and scales.shape[1] != values.shape[1]
    kind = "block" if of_blocks else "row"
    return Fp8Matrices(values, scales, None, kind, halves if of_blocks else 1).dequantized
""",
    "vllm/model_executor/layers/fused_moe/config.py": """
def fp8_w8a8_moe_quant_config(**options):
    return options
""",
    "flashinfer/autotuner/__init__.py": """
import contextlib
tuned, current = [], None
@contextlib.contextmanager
def autotune(tune_mode, *, tuning_buckets):
    global current
    (current,) = tuning_buckets
    if tune_mode:
        tuned.append(current)
    yield
    current = None
""",
    "flashinfer/fused_moe/cute_dsl/sm90_contiguous_gather_grouped_gemm_act_fusion.py": """
import torch
packs = 0
def interleave_up_gate_sm90(w):
    global packs
    packs += 1
    gate, up = w.view(len(w), 2, -1, 32, w.shape[2]).unbind(1)
    return torch.stack((up, gate), dim=2).reshape(w.shape)
""",
    "flashinfer/fused_moe/cute_dsl/sm90_fused_moe.py": """
factor = 1.0
def cute_dsl_fused_moe_bf16(x, experts, scales, w1, w2, num_experts, top_k):
    from flashinfer import autotuner
    assert autotuner.current == len(x) and autotuner.current in autotuner.tuned
    import torch
    from tessera.tools.bench.ops.fused_experts_inputs import Inputs
    from tessera.tools.bench.ops.fused_experts_inputs import reference
    assert experts.dtype == torch.int32 and scales.dtype == torch.float32
    assert (num_experts, top_k) == (len(w1), experts.shape[1])
    up, gate = w1.view(len(w1), -1, 2, 32, w1.shape[2]).unbind(2)
    w13 = torch.stack((gate, up), dim=1).reshape(w1.shape)
    output = reference(Inputs(x, w13, w2, scales, experts), torch.arange(len(x)))
    return (factor * output).to(x.dtype)
""",
    "vllm/third_party/deep_gemm/__init__.py": """
factor = 1.0
def m_grouped_bf16_gemm_nt_contiguous(a, b, d, m_indices):
    assert len(a) == len(d) == len(m_indices) and len(a) % 128 == 0
    for begin in range(0, len(a), 128):
        block = slice(begin, begin + 128)
        expert = int(m_indices[begin])
        assert expert >= 0 and set(m_indices[block].tolist()) <= {expert, -1}
        d[block] = factor * a[block] @ b[expert].T

def m_grouped_fp8_gemm_nt_contiguous(a, b, d, m_indices):
    (rows, row_scales), (weights, scales) = a, b
    assert row_scales.shape == (len(rows), rows.shape[1] // 128) and row_scales.stride(0) == 1
    for _ in range(2):
        scales = scales.repeat_interleave(128, 1).mT
    rows = rows.float() * row_scales.repeat_interleave(128, 1)
    products = d.float()
    m_grouped_bf16_gemm_nt_contiguous(rows, weights.float() * scales, products, m_indices)
    d.copy_(products)
""",
}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """The engines, which compute what they ought to; gives their modules."""
    for name, text in _ENGINES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TESSERA_VLLM", "1")
    fused_experts_engines._vllm.cache_clear()
    yield lambda name: __import__(name, fromlist=["x"])
    fused_experts_engines._vllm.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vllm", "flashinfer")]:
        del sys.modules[name]


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
