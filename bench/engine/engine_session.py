"""One engine of vLLM in one process: starts it, times cases, takes profiles and values.

`throughput.py` runs this program, one process for each variant and turn. The argument is a JSON
object, and every line of output that begins with `MARK` is a record: a JSON object whose `record`
says what it is. All other lines are the engine's log.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import engine_models
import kernel_roles

MARK = "@engine-record "
# Sequences, tokens of a prompt, generated tokens.
CASES = {
    "prefill 16x2048": (16, 2048, 1),
    "decode 1": (1, 32, 128),
    "decode 32": (32, 32, 128),
    "decode 256": (256, 32, 128),
}
# Under the profiler: one step of prefill, and fewer steps of decoding.
PROFILED_SEQUENCES, PROFILED_STEPS = 4, 32
# Of the comparison of values: prompts, their tokens, generated tokens, prompts of a small batch.
PROMPTS, PROMPT_TOKENS, GENERATED, SMALL_BATCH = 64, 128, 64, 3


def num_tokens(case: str) -> int:
    """The tokens of a case that its tokens per second count."""
    sequences, prompt, generated = CASES[case]
    return sequences * (prompt if case.startswith("prefill") else generated)


def report(record: str, **fields: Any) -> None:
    """Write a record for the program that runs this one."""
    # A line of its own: progress bars leave theirs open.
    print("\n" + MARK + json.dumps({"record": record, **fields}), flush=True)


def prompts(vocab_size: int, sequences: int, tokens: int) -> list[dict[str, list[int]]]:
    """The same random prompts in every process."""
    numbers = random.Random(1)
    return [
        {"prompt_token_ids": [numbers.randrange(1000, vocab_size - 1000) for _ in range(tokens)]}
        for _ in range(sequences)
    ]


class Session:
    """An engine, and what is asked of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._vocab_size: int = engine_models.MODELS[spec["model"]].config["vocab_size"]
        folder = Path(tempfile.mkdtemp())
        engine_models.write_config(folder, spec["model"], spec["layers"])
        begin = time.perf_counter()
        from vllm import LLM

        options = engine_models.ENGINE_OPTIONS | engine_models.EXECUTIONS[spec["execution"]]
        self._llm = LLM(model=str(folder), **options)
        self._start_s = time.perf_counter() - begin

    def start(self) -> None:
        """Report the start, what Tessera serves, and versions; set the weights for what follows."""
        import vllm

        import tessera.vllm
        from tessera.tools.bench.machine import description

        served = list(tessera.vllm._patches.names)
        if bool(served) != (self._spec["variant"] != "vllm"):
            sys.exit(
                f"{self._spec['variant']}: expected vLLM "
                f"{'without' if served else 'with'} Tessera, got {served or 'no served function'}: "
                "a package beside vLLM with its metadata is needed, and VLLM_PLUGINS must allow it"
            )
        report("start", start_s=round(self._start_s, 2), served=served)
        if self._spec["parts"]:
            self._llm.apply_model(engine_models.initialise)
            self._generate("prefill", 8, 64, 8)
        about = description("cuda", self._spec["commit"])
        del about["environment"]
        report("about", about=about | {"vllm": vllm.__version__})

    def throughput(self) -> None:
        """Time each case, once to warm up and then as often as asked."""
        for name, case in CASES.items():
            seconds = []
            for repeat in range(1 + self._spec["repeats"]):
                begin = time.perf_counter()
                outputs = self._generate(name, *case)
                if repeat:
                    seconds.append(round(time.perf_counter() - begin, 5))
            tokens = [list(one.outputs[0].token_ids) for one in outputs]
            digest = hashlib.sha1(repr(tokens).encode()).hexdigest()[:12]
            different = len({token for row in tokens for token in row})
            report("case", case=name, seconds=seconds, tokens_sha1=digest, different=different)

    def kernels(self) -> None:
        """Profile each case: the GPU time of each kernel."""
        from torch.profiler import ProfilerActivity, profile

        for name, (sequences, prompt, generated) in CASES.items():
            if generated == 1:
                sequences = min(sequences, PROFILED_SEQUENCES)
            case = (sequences, prompt, min(generated, PROFILED_STEPS))
            self._generate(name, *case)
            with profile(activities=[ProfilerActivity.CUDA]) as trace:
                self._generate(name, *case)
            found = [
                kernel_roles.Kernel(one.key, one.self_device_time_total, one.count)
                for one in trace.key_averages()
                if one.self_device_time_total
            ]
            report("kernels", case=name, profiled=case, **kernel_roles.summary(found))

    def values(self) -> None:
        """Write the values of all prompts in one batch, and of small batches in reverse order."""
        import numpy as np

        def arrays(outputs: list[Any]) -> tuple[list[list[float]], list[list[int]]]:
            logprobs = [
                [one.prompt_logprobs[i][one.prompt_token_ids[i]].logprob for i in positions]
                for one in outputs
                if (positions := range(1, len(one.prompt_token_ids)))
            ]
            return logprobs, [list(one.outputs[0].token_ids) for one in outputs]

        sampling = {"max_tokens": GENERATED, "prompt_logprobs": 0}
        asked = prompts(self._vocab_size, PROMPTS, PROMPT_TOKENS)
        together = self._run(asked, **sampling)
        apart = []
        for begin in range(0, PROMPTS, SMALL_BATCH):
            apart += self._run(asked[::-1][begin : begin + SMALL_BATCH], **sampling)
        logprobs, tokens = arrays(together)
        logprobs_apart, tokens_apart = arrays(apart[::-1])
        np.savez(
            self._spec["arrays"],
            logprobs=np.array(logprobs),
            tokens=np.array(tokens),
            logprobs_apart=np.array(logprobs_apart),
            tokens_apart=np.array(tokens_apart),
        )
        report("values")

    def _generate(self, name: str, sequences: int, prompt: int, generated: int) -> list[Any]:
        outputs = self._run(prompts(self._vocab_size, sequences, prompt), max_tokens=generated)
        if any(len(one.outputs[0].token_ids) != generated for one in outputs):
            sys.exit(f"{name}: expected {generated} tokens for each sequence, got fewer")
        return outputs

    def _run(self, asked: list[dict[str, list[int]]], **sampling: Any) -> list[Any]:
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **sampling)
        return list(self._llm.generate(asked, parameters, use_tqdm=False))


def main() -> None:
    """Run the parts that the argument names."""
    # In one process batches are the same in every run, and so are vLLM's tokens; with the engine in
    # a process of its own they depend on when requests arrive.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    spec = json.loads(sys.argv[1])
    session = Session(spec)
    session.start()
    for part in spec["parts"]:
        getattr(session, part)()
    report("end")
    sys.stdout.flush()
    os._exit(0)  # nothing is left to save, and taking an engine down takes seconds


if __name__ == "__main__":
    main()
