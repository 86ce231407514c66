"""The symbols of apache-tvm-ffi that the extension needs, so that ABI changes are noticed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import tessera

ALLOWED = {
    "TVMFFIBacktrace",
    "TVMFFIEnvGetStream",
    "TVMFFIErrorSetRaised",
    "TVMFFIGetTypeInfo",
}


def test_imported_symbols() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    extension = Path(tessera.__file__).with_name("lib") / "tessera_ffi.so"
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True
    ).stdout
    symbols = {line.split()[-1].partition("@")[0] for line in listing.splitlines()}
    assert {name for name in symbols if "TVMFFI" in name} == ALLOWED
    assert not {name for name in symbols if "tvm" in name}  # no C++ symbol, only the C ABI
