"""`python -m tessera.vllm SCRIPT`: runs a program whose vLLM functions are served by Tessera.

The exit code is the program's, or 2 if it cannot be started.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

import tessera
from tessera._device import HOST, cuda_index_of
from tessera._library import torch_failure, torch_or_none

_PROGRAM = "python -m tessera.vllm"


class _Parser(argparse.ArgumentParser):
    """Prints usage errors in one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tessera.vllm: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        usage=f"{_PROGRAM} [--device DEVICE] (SCRIPT | - | -m MODULE) [ARGUMENT ...]",
        description="Runs a Python program in which Tessera serves vLLM's moe_align_block_size and "
        "its siblings, whether vLLM is installed or not.",
        epilog="A program - is read from standard input. Arguments after SCRIPT, - or MODULE are "
        "passed to the program.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device",
        help="cuda or cuda:N: the GPU to use; cpu: run a program written for a GPU without one "
        "(default: the GPU, if there is one)",
    )
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and the program with its arguments."""
    start = 0
    while start < len(arguments) and re.match("-(?!m?$)", arguments[start]):
        start += 2 if arguments[start] == "--device" else 1
    return list(arguments[:start]), list(arguments[start:])


def _safe_path() -> bool:
    return bool(getattr(sys.flags, "safe_path", sys.flags.isolated))


def _find(program: list[str]) -> None:
    """Set up the import path as `python SCRIPT` or `python -m MODULE` does.

    Raises:
        ValueError: there is no such program.
    """
    if not program:
        raise ValueError("SCRIPT: expected a file, or -m MODULE, got nothing; see --help")
    if program[0] == "-":
        if not _safe_path():
            sys.path[0] = ""
        return
    if program[0] != "-m":
        script = Path(program[0])
        if not script.is_file():
            raise ValueError(f"SCRIPT: expected a file, got {program[0]!r}")
        if not _safe_path():
            sys.path[0] = str(script.resolve().parent)
        return
    if len(program) == 1:
        raise ValueError("-m: expected the name of a module, got nothing")
    refusal = f"-m: expected the name of a module, got {program[1]!r}"
    try:
        spec = importlib.util.find_spec(program[1])
        if spec and spec.submodule_search_locations is not None:  # a package
            spec = importlib.util.find_spec(f"{program[1]}.__main__")
    except ModuleNotFoundError as error:
        raise ValueError(f"{refusal} ({error})") from None
    if spec is None:
        raise ValueError(refusal)


def _expect_torch() -> None:
    """Require torch.

    Raises:
        ValueError: there is no torch; the message says what to do.
    """
    if torch_or_none() is None:
        failure = torch_failure()
        which = f"cannot be imported ({failure})" if failure else "is not installed"
        remedy = "" if failure else ": pip install torch"
        raise ValueError(f"vLLM's functions take torch's tensors, and torch {which}{remedy}")


def _serve() -> None:
    """Let Tessera serve vLLM's functions."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:  # a mere folder of that name has no origin
        from tessera.vllm import standin

        standin.provide()
    else:
        from tessera.vllm import installed

        installed.serve()


def _device_index(device: str | None) -> int:
    """The GPU to use, or HOST."""
    import torch

    if device is not None:
        return cuda_index_of("warmup", device)
    if torch.cuda.is_available():
        return cuda_index_of("warmup", "cuda")
    print(
        "tessera.vllm: no GPU found; --device cpu runs programs written for a GPU on the CPU",
        file=sys.stderr,
    )
    return HOST


def _make_ready(index: int) -> None:
    """Do the work now that makes a process's first calls on a device slow."""
    import torch

    device = "cpu" if index == HOST else f"cuda:{index}"
    tessera.warmup(device)
    if index != HOST:
        torch.cuda.set_device(index)
    # Calls the very function that the program will call, with sizes that run different kernels.
    align = importlib.import_module("vllm.model_executor.layers.fused_moe.moe_align_block_size")
    for num_tokens, num_experts, block_size in ((1, 8, 16), (4096, 64, 128), (65536, 256, 64)):
        topk_ids = torch.arange(num_tokens * 2, dtype=torch.int32, device=device) % num_experts
        for _ in range(2):
            align.moe_align_block_size(topk_ids, num_experts, block_size, 2)
    if index != HOST:
        torch.cuda.synchronize()


def _run(program: list[str]) -> None:
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = program
    if program[0] == "-":
        code = compile(sys.stdin.buffer.read(), "<stdin>", "exec", dont_inherit=True)
        sys.modules["__main__"] = ModuleType("__main__")
        exec(code, vars(sys.modules["__main__"]))
    else:
        runpy.run_path(program[0], run_name="__main__")


def _asked_for_gpu(frames: TracebackType) -> str:
    """Where a program asked torch for a GPU, and there is none; empty of any other error."""
    place = ""
    while True:
        module, code = frames.tb_frame.f_globals.get("__name__", ""), frames.tb_frame.f_code
        if module.partition(".")[0] != "torch":
            place = f"{code.co_filename}:{frames.tb_lineno}"
        if frames.tb_next is None:
            return place if (module, code.co_name) == ("torch.cuda", "_lazy_init") else ""
        frames = frames.tb_next


def _hide_launcher(*, has_gpu: bool) -> None:
    """Let the traceback of an error in the program begin with the program's own frames.

    has_gpu: if not, an error that says so is shown in one line.
    """
    show = sys.excepthook

    def show_program(
        kind: type[BaseException], error: BaseException, frames: TracebackType | None
    ) -> None:
        ours = (_run.__code__.co_filename, runpy.run_path.__code__.co_filename)
        while frames is not None and frames.tb_frame.f_code.co_filename in ours:
            frames = frames.tb_next
        if frames is not None and not has_gpu and (place := _asked_for_gpu(frames)):
            reason = str(error).strip().partition("\n")[0]
            print(f"tessera.vllm: {place}: expected a GPU, found none: {reason}", file=sys.stderr)
            return
        show(kind, error.with_traceback(frames), frames)

    sys.excepthook = show_program


def main() -> None:
    """Make everything ready, and run the program in this process."""
    own, program = _split(sys.argv[1:])
    parser = _parser()
    device = parser.parse_args(own).device
    try:
        _find(program)
        _expect_torch()
        _serve()
        index = _device_index(device)
        _make_ready(index)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        message = str(error).partition("\n")[0]
        if device is not None:  # which the first call is given
            message = re.sub("^warmup: device: ", "argument --device: ", message)
        parser.error(message)
    if device is not None and index == HOST:
        from tessera.vllm.device import redirect_to_cpu

        redirect_to_cpu()
    _hide_launcher(has_gpu=index != HOST)
    _run(program)


if __name__ == "__main__":
    main()
