"""Files of engines, real ones and stand-ins: their folders, definitions, and import."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

STANDINS = Path(__file__).with_name("standins")
FAMILY = re.compile(
    r"(batched_|)moe_(lora_|)align_block_size|topk_(softmax|sigmoid|hash_softplus_sqrt)"
    r"|(fused|grouped)_topk|moe_(sum|permute|unpermute)|fused_experts_impl|TritonExperts\.apply"
    r"|FusedMoE(Modular)?Kernel\.__init__|FusedMoEKernelModularImpl\._fused_experts"
    r"|FusedTopKRouter\._compute_routing"
)


def sites(package: str) -> list[Any]:
    """Folders with the package: from TESSERA_<PACKAGE>_SITE, else the installed one's.

    Returns pytest parameters; a skipped one that says why, if there is no such folder.
    """
    variable = f"TESSERA_{package.upper()}_SITE"
    folders = [Path(folder) for folder in os.environ.get(variable, "").split(os.pathsep) if folder]
    if not folders and (spec := importlib.util.find_spec(package)) and spec.origin:
        folders = [Path(spec.origin).parents[1]]
    if folders:
        return [pytest.param(folder, id=folder.name) for folder in folders]
    reason = f"{package} is not installed, and {variable} names no folder with its files"
    return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=f"no {package}")]


def version(folder: Path, package: str) -> str:
    text = (folder / package / "_version.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__ = .*'(.+)'$", text, re.MULTILINE)
    assert found, text
    return found[1]


def signatures(file: Path) -> dict[str, dict[str, str | None]]:
    """The parameters of each served function in the file, with their defaults as written."""
    found = {}
    functions = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for each in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(each, ast.FunctionDef):
                functions.append((owner + each.name, each))
    for name, node in functions:
        if FAMILY.fullmatch(name):
            names = [argument.arg for argument in node.args.args]
            defaults = [ast.unparse(default) for default in node.args.defaults]
            parameters: dict[str, str | None] = dict.fromkeys(names)
            parameters.update(zip(names[len(names) - len(defaults) :], defaults, strict=True))
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                parameters[argument.arg] = None if default is None else ast.unparse(default)
            found[name] = parameters  # of overloads, the last
    return found


class Nothing(ModuleType):
    """Stands for a module; a missing attribute is a function that returns False."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: False


def provide(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    real: Mapping[str, Mapping[str, object]],
    stubs: Mapping[str, Mapping[str, object]],
) -> None:
    """Let the process import real files of packages without running their `__init__.py`.

    Args:
        monkeypatch: takes everything back.
        folder: where the packages are.
        real: packages whose other files are imported from there, with names that they are to have.
        stubs: modules that are not imported, with names that they are to have.
    """
    for name, contents in [*real.items(), *stubs.items()]:
        module = Nothing(name)
        module.__dict__.update(contents)
        if name in real:
            module.__path__ = [str(folder.joinpath(*name.split(".")))]
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, own_name = name.rpartition(".")
        if parent in sys.modules:
            monkeypatch.setattr(sys.modules[parent], own_name, module, raising=False)
