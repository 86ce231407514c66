"""The message of a library without a CUDA backend: why, and how to get one."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

import tessera
from programs import run_program

PACKAGE = Path(tessera.__file__).with_name("lib")
# Where there is nvcc, `make test` builds the backend there.
DEV_BUILD = Path(__file__).parents[2] / "build/dev"
WARMUP = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.tessera_last_error.restype = ctypes.c_char_p
assert library.tessera_warmup(1, 0) != 0
print(library.tessera_last_error().decode())
"""


@pytest.mark.parametrize("folder", [PACKAGE, DEV_BUILD], ids=["package", "dev build"])
def test_library_without_a_backend_beside_it(tmp_path: Path, folder: Path) -> None:
    built = sorted(folder.glob("libtessera.so.*"))
    if not built:
        pytest.skip(f"no library in {folder}")
    alone = tmp_path / "libtessera.so"
    shutil.copy(built[0], alone)
    done = run_program([sys.executable, "-c", WARMUP, str(alone)])
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    if (folder / "libtessera_cuda.so").exists():
        assert said.endswith(
            f"the CUDA backend that was built with this library is not beside it: "
            f"{tmp_path}/libtessera_cuda.so"
        )
    else:
        # Reason, and in parentheses the remedy.
        assert re.search(r"; this build has no CUDA backend: [^()]{20,} \([^()]{20,}\)$", said)


def test_build_names_what_its_backend_is_for() -> None:
    form = r"[^,]+, (optimised|with assertions)"
    if (PACKAGE / "libtessera_cuda.so").exists():
        form += r", CUDA [\d.]+ for [\w -]+ \(CMAKE_CUDA_ARCHITECTURES chooses\)"
    assert re.fullmatch(form, tessera.build()), tessera.build()
