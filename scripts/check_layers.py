"""Lists imports and includes that point upwards or close a circle; exits with 1 if there are any.

Every `import` of Python counts, also one inside a function, and every `#include` of a file that is
in the repository.

Usage: check_layers.py [REPOSITORY]
"""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HOST = ("tessera._starting", "tessera._library", "tessera._frameworks")
RUNTIME = (*HOST, "tessera._call", "tessera.<op>", "tessera")
BACKEND = ("include", "src/core")
CUDA = (*BACKEND, "src/cuda/parts", "src/cuda")

# From the bottom up: each layer, its files, and the layers that these may use besides their own. A
# file that matches several patterns belongs to the longest of them.
LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "include": (("include/tessera/*",), ()),
    "src/core": (("src/core/*",), ("include",)),
    "src/ops": (("src/ops/*",), BACKEND),
    "src/cpu": (("src/cpu/*",), BACKEND),
    "src/cuda/parts": (("src/cuda/parts/*",), BACKEND),
    "src/cuda": (("src/cuda/*",), (*BACKEND, "src/cuda/parts")),
    "src/cuda/<op>": (("src/cuda/*/*",), CUDA),
    # The descriptor names every op; device.cpp asks whether the code of one op's kernel runs.
    "src/cuda/backend": (("src/cuda/backend.cpp", "src/cuda/device.cpp"), (*CUDA, "src/cuda/<op>")),
    "src/registry": (("src/registry.cpp",), (*BACKEND, "src/ops", "src/cpu", "src/cuda")),
    "src/c_api": (("src/c_api/*",), BACKEND),
    "contract": (("contract/*",), ("include",)),
    "python/ffi": (("python/ffi/*",), ("include", "contract")),
    "tessera._starting": (
        tuple(
            f"python/tessera/{name}.py"
            for name in ("_starting", "_device", "_capture", "_renaming", "_shown")
        ),
        (),
    ),
    "tessera._library": (("python/tessera/_library.py",), ("tessera._starting",)),
    "tessera._frameworks": (
        tuple(
            f"python/tessera/{name}.py"
            for name in (
                "_results",
                "_op",
                "_outputs",
                "_framework",
                "_frameworks",
                "_float8",
                "_arrays",
            )
        ),
        ("tessera._starting", "tessera._library"),
    ),
    "tessera._call": (
        tuple(
            f"python/tessera/{name}.py"
            for name in ("_call", "_torch_hook", "_torch_registry", "torch_ops")
        ),
        HOST,
    ),
    "tessera.<op>": (("python/tessera/*.py", "python/tessera/ops/*.py"), (*HOST, "tessera._call")),
    "tessera": (("python/tessera/__init__.py",), (*HOST, "tessera.<op>")),
    "tessera._patching": (
        tuple(
            f"python/tessera/{name}.py" for name in ("_patching", "_plain_tensor", "_engine_router")
        ),
        RUNTIME,
    ),
    "tessera.vllm": (
        ("python/tessera/vllm/*",),
        ("tessera", "tessera._patching", "tessera._starting", "tessera._library"),
    ),
    "tessera.sglang": (("python/tessera/sglang/*",), ("tessera", "tessera._patching")),
    "tessera.transformers": (("python/tessera/transformers/*",), ("tessera",)),
    "tessera.tools": (("python/tessera/tools/**/*",), RUNTIME),
    "tessera.cli": (
        ("python/tessera/cli/*", "python/tessera/__main__.py"),
        (*RUNTIME, "tessera.tools"),
    ),
}
# These may use everything that they measure or test.
LAYERS["bench"] = (("bench/**/*",), tuple(LAYERS))
LAYERS["tests"] = (("tests/**/*",), tuple(LAYERS))

FOLDERS = ("include", "src", "contract", "python", "bench", "tests")
SOURCES = (".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp")
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
# The search paths of the compiler and Python; an include is first searched beside its file.
INCLUDE_FOLDERS = ("include", "src", "contract", "bench", "tests")
IMPORT_FOLDERS = ("python", "bench", "tests/python", "tests/adapters", "tests/transformers")


class Use(NamedTuple):
    """An import or include of a file of the repository; the file may not exist."""

    file: Path
    line: int
    target: Path


def layers_of_files(root: Path) -> dict[Path, str]:
    """The layer of every file that has one."""
    patterns = [(pattern, layer) for layer, (files, _) in LAYERS.items() for pattern in files]
    return {
        file: layer
        for pattern, layer in sorted(patterns, key=lambda row: len(row[0]))
        for file in root.glob(pattern)
    }


def includes(file: Path, root: Path) -> Iterator[Use]:
    """The files of the repository that a C or C++ file includes."""
    folders = [file.parent, *(root / folder for folder in INCLUDE_FOLDERS)]
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if found := INCLUDE.match(line):
            quote, name = found.groups()
            target = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if target or quote == '"':
                yield Use(file, number, (target or file.parent / name).resolve())


def module_file(name: str, folders: list[Path]) -> Path | None:
    """The file of a module that is in one of the folders."""
    for folder in folders:
        path = folder.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def imports(file: Path, root: Path) -> Iterator[Use]:
    """The files of the repository that a Python file imports."""
    folders = [root / folder for folder in IMPORT_FOLDERS]
    for node in ast.walk(ast.parse(file.read_bytes(), file)):
        if isinstance(node, ast.Import):
            targets = [module_file(alias.name, folders) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            within = [file.parents[node.level - 1]] if node.level else folders
            targets = [
                module_file(f"{module}.{alias.name}".lstrip("."), within)
                or module_file(module, within)
                for alias in node.names
            ]
        else:
            continue
        yield from (Use(file, node.lineno, target) for target in dict.fromkeys(targets) if target)


def circle(uses: list[Use]) -> list[Use]:
    """The uses of one circle of files, in its order; empty if there is none."""
    found = {(use.file, use.target): use for use in reversed(uses)}
    graph: dict[Path, set[Path]] = {}
    for use in uses:
        graph.setdefault(use.file, set()).add(use.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        files = error.args[1][::-1]
        return [found[pair] for pair in pairwise(files)]
    return []


def faults(root: Path) -> Iterator[str]:
    """A line for each use that breaks a rule."""
    layer_of = layers_of_files(root)
    files = [file for folder in FOLDERS for file in sorted(root.joinpath(folder).rglob("*"))]
    uses: list[Use] = []
    for file in files:
        if file.suffix not in SOURCES:
            continue
        if file not in layer_of:
            yield f"{file.relative_to(root)}:1: no layer of scripts/check_layers.py has this file"
        uses += (imports if file.suffix == ".py" else includes)(file, root)
    for use in uses:
        place = f"{use.file.relative_to(root)}:{use.line}"
        target = use.target.relative_to(root)
        if not use.target.is_file():
            yield f"{place}: uses {target}, and no folder of includes has it"
            continue
        layer, other = layer_of.get(use.file), layer_of.get(use.target, "what has no layer")
        if layer is not None and other not in (layer, *LAYERS[layer][1]):
            allowed = ", ".join(LAYERS[layer][1]) or "no other layer"
            yield f"{place}: uses {target}: {layer} may use {allowed}, and not {other}"
    if not uses:
        yield f"{root}: expected files that import or include others, found none"
    for use in circle(uses):
        yield (
            f"{use.file.relative_to(root)}:{use.line}: closes a circle: uses "
            f"{use.target.relative_to(root)}"
        )


def main(arguments: list[str]) -> int:
    """Prints one line per fault."""
    root = Path(arguments[0] if arguments else Path(__file__).parents[1]).resolve()
    lines = list(faults(root))
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
