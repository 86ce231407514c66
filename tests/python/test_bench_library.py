"""How `tessera bench` finds the library of its peers, and its message without one."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import tessera
from tessera.cli.main import main
from tessera.tools.bench import contender
from tessera.tools.bench.contender import CUDA_LIBRARY, HOST_LIBRARY, NativeLibrary


def installed_from(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that pip installed the package from this folder; None stands for an index."""
    text = None if url is None else json.dumps({"url": url, "dir_info": {}})
    found = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    contender.native_library.cache_clear()


def test_a_package_has_no_library_of_peers() -> None:
    installed = Path(tessera.__file__).with_name("lib")
    assert [path.name for path in installed.iterdir() if "bench" in path.name] == []
    assert (installed / "tessera_ffi.so").exists()


def test_the_library_is_that_of_the_checkout() -> None:
    function = NativeLibrary(HOST_LIBRARY).function("has_openmp")
    assert function() in (False, True)


@pytest.mark.parametrize("url", [None, "https://example.org/tessera.whl", "file:///no/such/folder"])
def test_a_wheel_says_how_to_get_one(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(url, monkeypatch)
    with pytest.raises(OSError) as caught:
        NativeLibrary(CUDA_LIBRARY)
    assert str(caught.value) == (
        "tessera_bench_cuda.so is in no package: in a checkout of Tessera, run scripts/build.sh "
        "bench and then .venv/bin/tessera bench"
    )


def test_a_checkout_without_a_build_says_how_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    installed_from(checkout.as_uri(), monkeypatch)
    assert main(["bench", "--device", "cpu", "--tokens", "16"]) == 2
    assert capsys.readouterr().err == (
        f"tessera bench: {checkout}/build/bench/tessera_bench.so is missing: run "
        f"scripts/build.sh bench in {checkout}\n"
    )
    contender.native_library.cache_clear()
