"""The experts of a layer in one call, beside a loop over the experts in NumPy, and in torch."""

import importlib.util
import time

import numpy as np

import tessera

TOKENS, HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 128, 512, 384, 16, 2

rng = np.random.default_rng(seed=0)
x = rng.standard_normal((TOKENS, HIDDEN), np.float32)
w13 = rng.standard_normal((EXPERTS, 2 * INTERMEDIATE, HIDDEN), np.float32) / np.float32(HIDDEN**0.5)
w2 = rng.standard_normal((EXPERTS, HIDDEN, INTERMEDIATE), np.float32)
topk_ids = rng.random((TOKENS, EXPERTS)).argsort(axis=1)[:, :TOP_K]
topk_weights = rng.dirichlet(np.ones(TOP_K), TOKENS).astype(np.float32)
layer = {"x": x, "w13": w13, "w2": w2, "topk_weights": topk_weights, "topk_ids": topk_ids}


def in_numpy(x, w13, w2, topk_weights, topk_ids):
    """One pair of matrix products per expert."""
    output = np.zeros_like(x)
    for expert in range(len(w13)):
        tokens, slots = np.nonzero(topk_ids == expert)
        gate, up = np.split(x[tokens] @ w13[expert].T, 2, axis=1)
        down = (gate / (1 + np.exp(-gate)) * up) @ w2[expert].T
        output[tokens] += topk_weights[tokens, slots, None] * down
    return output


def in_torch(x, w13, w2, topk_weights, topk_ids):
    """The same with tensors."""
    output = torch.zeros_like(x)
    for expert in range(len(w13)):
        tokens, slots = torch.where(topk_ids == expert)
        gate, up = (x[tokens] @ w13[expert].T).chunk(2, dim=1)
        down = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
        output[tokens] += topk_weights[tokens, slots, None] * down
    return output


def milliseconds(function, arguments):
    """The fastest of some calls after a first one: threads of BLAS may be in each other's way."""
    function(**arguments)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        function(**arguments)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


output = tessera.fused_experts(**layer)
np.testing.assert_allclose(output, in_numpy(**layer), rtol=1e-3, atol=1e-3)
used = tessera.fused_experts_bound_used(**layer, output=output)
ours = milliseconds(tessera.fused_experts, layer)
loops = {"NumPy": milliseconds(in_numpy, layer)}
if importlib.util.find_spec("torch"):
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in layer.items()}
    loops["torch"] = milliseconds(in_torch, tensors)
others = "".join(f"; {name} {ms:.1f} ms ({ms / ours:.1f} x)" for name, ms in loops.items())
print(f"experts   {ours:.1f} ms  fused_experts{others}; {used:.2%} of the error bound used")
