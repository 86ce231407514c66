"""Runs vLLM's own test of its layer over Tessera, without vLLM.

    python tests/adapters/published/run.py [--file FILE] [--device cpu] [ARGUMENT ...]

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
import urllib.request
from pathlib import Path

URL = "https://raw.githubusercontent.com/vllm-project/vllm/v0.9.2/tests/kernels/moe/test_moe.py"
SHA256 = "8f1de5b93d3d6c843b15abc636ef4e70dfa4b20f56cc277efeefcac32ebbfb3b"
CONFTEST = Path(__file__).with_name("beside_test_moe.py")


def content(file: Path | None) -> bytes:
    """The test file.

    Raises:
        ValueError: it is another one.
    """
    if file is None:
        with urllib.request.urlopen(URL, timeout=60) as response:
            found: bytes = response.read()
    else:
        found = file.read_bytes()
    digest = hashlib.sha256(found).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{file or URL}: expected SHA-256 {SHA256}, got {digest}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--file", type=Path, help="where the test file is")
    parser.add_argument("--device", help="as of python -m tessera.vllm")
    own, arguments = parser.parse_known_args()
    try:
        test_file = content(own.file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    device = [] if own.device is None else ["--device", own.device]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_moe.py").write_bytes(test_file)
        shutil.copy(CONFTEST, Path(folder, "conftest.py"))
        launcher = [sys.executable, "-m", "tessera.vllm", *device, "-m", "pytest"]
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", folder]
        return subprocess.run([*launcher, *options, *arguments, f"{folder}/test_moe.py"]).returncode


if __name__ == "__main__":
    sys.exit(main())
