"""Runs one of vLLM's own tests of its layers over Tessera, without vLLM.

    python tests/adapters/published/run.py [--test NAME | --file FILE] [--device cpu]
                                           [--reference {vllm,float32}] [ARGUMENT ...]

The test file is fetched, or read where FILE says, and lies in a temporary folder while it runs.
Further arguments are pytest's, such as `-k` with a part of a test's name. The exit code is its.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import torch

URL = "https://raw.githubusercontent.com/vllm-project/vllm/v0.9.2/tests/kernels/moe/"
# The SHA-256 of each file. The first is run by default.
TESTS = {
    "test_moe.py": "8f1de5b93d3d6c843b15abc636ef4e70dfa4b20f56cc277efeefcac32ebbfb3b",
    "test_block_fp8.py": "0b06f469ab4b6fdfdb02e052a14fb1f82184f2acc73f736390346c823fef8ce1",
    "test_triton_moe_ptpc_fp8.py": (
        "41f034e1d99c2fb905ba8b27b49cebe3a6069ae9e61476d103ed0a9551a15cbc"
    ),
}
HERE = Path(__file__).parent
CONFTEST = HERE / "beside_tests.py"


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        content: bytes = response.read()
    return content


def name_of(content: bytes, source: object) -> str:
    """Which of the tests a file is, whatever its own name.

    Raises:
        ValueError: it is none of them.
    """
    digest = hashlib.sha256(content).hexdigest()
    for name, expected in TESTS.items():
        if digest == expected:
            return name
    known = " or ".join(f"{expected} ({name})" for name, expected in TESTS.items())
    raise ValueError(f"{source}: expected SHA-256 {known}, got {digest}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Further arguments are pytest's, such as -k with a part of a test's name.",
    )
    which = parser.add_mutually_exclusive_group()
    first = next(iter(TESTS))
    which.add_argument(
        "--test", choices=TESTS, default=first, help=f"the test to fetch (default: {first})"
    )
    which.add_argument("--file", type=Path, help="where one of these tests is")
    parser.add_argument("--device", help="as of python -m tessera.vllm (default: a GPU)")
    parser.add_argument(
        "--reference",
        choices=("vllm", "float32"),
        default="vllm",
        help="what the tests of fp8 compare with rounds the first product and the activated "
        "elements as vLLM does, or quantises them from float32, as Tessera does (default: vllm)",
    )
    own, arguments = parser.parse_known_args()
    if find_spec("vllm") is not None:
        parser.error(
            "expected a Python without vLLM, got one that has it: its ops have the names of those "
            "that stand for Tessera's here"
        )

    def refuse_unfit(name: str) -> None:
        if own.reference != "vllm" and "fp8" not in name:
            parser.error(f"--reference {own.reference} is for the tests of fp8, not for {name}")
        if own.device is None and not torch.cuda.is_available():
            parser.error(
                "expected a CUDA device, found none (--device cpu runs test_moe.py without)"
            )

    if own.file is None:  # before it is fetched
        refuse_unfit(own.test)
    try:
        content = own.file.read_bytes() if own.file else fetched(URL + own.test)
        name = name_of(content, own.file or URL + own.test)
    except urllib.error.URLError as error:
        parser.error(f"{URL}{own.test}: {error.reason}; --file takes a file that is here")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    refuse_unfit(name)
    device = [] if own.device is None else ["--device", own.device]
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder, name)
        test.write_bytes(content)
        shutil.copy(CONFTEST, Path(folder, "conftest.py"))
        shutil.copytree(HERE, Path(folder, HERE.name))  # which the conftest imports from
        launcher = [sys.executable, "-m", "tessera.vllm", *device, "-m", "pytest"]
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", folder]
        options += ["--reference", own.reference]
        return subprocess.run([*launcher, *options, *arguments, str(test)]).returncode


if __name__ == "__main__":
    sys.exit(main())
