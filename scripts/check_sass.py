"""Checks the machine code of the expert products in a CUDA module, libtessera_cuda.so.

A product that is right can still be slow: a compiler that runs out of registers in its main loop
keeps some in memory; one that does not understand a kernel waits for every multiplication. Every
kernel of the two products has to multiply by its own instruction of the tensor cores, HGMMA, QGMMA
or HMMA, in a loop. Its main loops, the innermost ones around these instructions, may neither read
nor write local memory (LDL, STL). Those around HGMMA and QGMMA may not call a function (CALL)
either, and have fewer waits (WARPGROUP.DEPBAR) than multiplications. The warps of these kernels
that copy to shared memory may use no local memory from the first copy of a tile to the last.

Prints a line per kernel and violation, and one of counts. Exits with 1 if there is a violation, and
with 2 if the module cannot be read. Needs cuobjdump of the CUDA toolkit on the PATH.

Usage: check_sass.py MODULE
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# The instructions that kernels multiply by, by the name of the kernel; their forms for
# float8_e4m3fn; and what main loops must not hold. For compute capability 8.0, nvcc ends loops
# around HMMA by a CALL of what follows.
MULTIPLIES = {"wgmma_product": "HGMMA", "swap_ab_layer": "HGMMA", "product_kernel": "HMMA"}
FP8, OF_FP8 = re.compile("7ScalingE[12]"), {"HGMMA": "QGMMA"}  # a Scaling other than kNone
FORBIDDEN = {
    "HGMMA": ("LDL", "STL", "CALL"),
    "QGMMA": ("LDL", "STL", "CALL"),
    "HMMA": ("LDL", "STL"),
}
WAIT = "WARPGROUP.DEPBAR"
COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")
LOCAL = ("LDL", "STL")

# "code for sm_90a", "Function : _ZN7tessera..."
ARCHITECTURE = re.compile(r"\s*code for (sm_\w+)")
FUNCTION = re.compile(r"\s*Function : (\S+)")
# "/*1490*/  @!P1 BRA 0xd60 ;", with the instruction's bits in a comment behind it
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)([^;]*);")
TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")


@dataclass(frozen=True)
class Loop:
    """The addresses from the target of a branch back to that branch."""

    first: int
    last: int

    def holds(self, first: int, last: int) -> bool:
        """Whether these addresses are in the loop."""
        return self.first <= first and last <= self.last


@dataclass
class Kernel:
    """A kernel's instructions, as far as they matter: names by address, and branches back."""

    name: str
    architecture: str
    instructions: dict[int, str] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)

    @property
    def multiply(self) -> str:
        """The instruction that it has to multiply by."""
        found = next(one for name, one in MULTIPLIES.items() if name in self.name)
        return OF_FP8.get(found, found) if FP8.search(self.name) else found

    def main_loops(self) -> list[Loop]:
        """The innermost loops around multiplications.

        A loop around another one of these, as that over tiles, is no main loop, although it may
        hold more multiplications.
        """
        found = set()
        for address, name in self.instructions.items():
            if name == self.multiply and (loop := self.innermost_loop(address)):
                found.add(loop)
        inner = [
            loop
            for loop in found
            if not any(loop != other and loop.holds(other.first, other.last) for other in found)
        ]
        return sorted(inner, key=lambda loop: loop.first)

    def innermost_loop(self, address: int) -> Loop | None:
        """The smallest loop around an instruction, if there is one."""
        around = [loop for loop in self.loops if loop.holds(address, address)]
        return min(around, key=lambda loop: loop.last - loop.first, default=None)

    def copies(self) -> Loop | None:
        """The code from the first copy to the last, if there is one.

        What warps that multiply copy before the products of a tile is in the same loop as these
        products, and does not count.
        """
        places = [
            at
            for at, name in self.instructions.items()
            if name in COPIES and not self._is_beside_products(at)
        ]
        return Loop(min(places), max(places)) if places else None

    def _is_beside_products(self, address: int) -> bool:
        """Whether the innermost loop around an instruction holds multiplications."""
        loop = self.innermost_loop(address)
        return loop is not None and any(
            name == self.multiply and loop.holds(at, at) for at, name in self.instructions.items()
        )

    def violations(self) -> Iterator[str]:
        """What the kernel lacks, or must not do."""
        loops = self.main_loops()
        if not loops:
            yield f"expected {self.multiply} in a loop, found none"
        for loop in loops:
            for address, name in self.instructions.items():
                if name in FORBIDDEN[self.multiply] and loop.holds(address, address):
                    yield f"{name} at {address:#x}, in the main loop {loop.first:#x}-{loop.last:#x}"
            inside = Counter(name for at, name in self.instructions.items() if loop.holds(at, at))
            if inside[WAIT] >= inside[self.multiply]:
                yield (
                    f"expected fewer waits than {self.multiply} in the main loop "
                    f"{loop.first:#x}-{loop.last:#x}, found {inside[WAIT]} and "
                    f"{inside[self.multiply]}"
                )
        if self.multiply == "HMMA":
            return
        copies = self.copies()
        if copies is None:
            yield f"expected copies by {', '.join(COPIES)}, found none"
            return
        for address, name in self.instructions.items():
            if name in LOCAL and copies.holds(address, address):
                yield f"{name} at {address:#x}, among copies {copies.first:#x}-{copies.last:#x}"

    def summary(self) -> str:
        """Counts of instructions, in all and in each main loop."""
        counts = Counter(self.instructions.values())
        names = (self.multiply, *FORBIDDEN[self.multiply])
        parts = [f"{len(self.instructions)} instructions, " + _counted(counts, names)]
        for loop in self.main_loops():
            inside = [name for at, name in self.instructions.items() if loop.holds(at, at)]
            text = _counted(Counter(inside), names)
            parts.append(f"main loop {loop.first:#x}-{loop.last:#x}: {len(inside)}, {text}")
        return "; ".join(parts)


def _counted(counts: Counter[str], names: Iterable[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in names)


def kernels(lines: Iterable[str]) -> Iterator[Kernel]:
    """The kernels of products in what `cuobjdump -sass` prints."""
    architecture, kernel = "", None
    for line in lines:
        if found := INSTRUCTION.match(line):
            if kernel is not None:
                at, name = int(found[1], 16), found[2]
                if (name + found[3]).startswith(WAIT):
                    name = WAIT
                kernel.instructions[at] = name
                target = TARGET.search(found[3]) if name in ("BRA", "JMP") else None
                if target and int(target[1], 16) <= at:
                    kernel.loops.append(Loop(int(target[1], 16), at))
        elif found := FUNCTION.match(line):
            if kernel is not None:
                yield kernel
            is_product = any(name in found[1] for name in MULTIPLIES)
            kernel = Kernel(found[1], architecture) if is_product else None
        elif found := ARCHITECTURE.match(line):
            architecture = found[1]
    if kernel is not None:
        yield kernel


def check(lines: Iterable[str]) -> int:
    """Print what is found, and return the number of violations."""
    num_violations = 0
    counts: Counter[str] = Counter()
    architectures: dict[str, set[str]] = {multiply: set() for multiply in FORBIDDEN}
    for kernel in kernels(lines):
        counts[kernel.multiply] += 1
        architectures[kernel.multiply].add(kernel.architecture)
        print(f"{kernel.architecture} {kernel.name}: {kernel.summary()}")
        for violation in kernel.violations():
            num_violations += 1
            print(f"VIOLATION: {kernel.architecture} {kernel.name}: {violation}")
    if not counts["HMMA"]:
        num_violations += 1
        print("VIOLATION: expected kernels of products, product_kernel, found none")
    # A build for 9.0 has all.
    for multiply in ("HGMMA", "QGMMA"):
        if "sm_90" in architectures["HMMA"] and "sm_90a" not in architectures[multiply]:
            num_violations += 1
            print(f"VIOLATION: expected kernels for sm_90a with {multiply}, found none")
    parts = ", ".join(f"{counts[multiply]} with {multiply}" for multiply in FORBIDDEN)
    print(f"{counts.total()} kernels checked: {parts}; {num_violations} violations")
    return num_violations


def main() -> int:
    """Disassemble and check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", type=Path, metavar="MODULE", help="libtessera_cuda.so")
    module = parser.parse_args().module
    if not module.is_file():
        print(f"check_sass: MODULE: expected a file, got {module}", file=sys.stderr)
        return 2
    try:
        disassembler = subprocess.Popen(
            ["cuobjdump", "-sass", module], stdout=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        print(
            "check_sass: expected cuobjdump of the CUDA toolkit on the PATH, found none",
            file=sys.stderr,
        )
        return 2
    with disassembler:
        num_violations = check(disassembler.stdout or ())
    if disassembler.returncode != 0:
        print(
            f"check_sass: cuobjdump -sass {module}: exit status {disassembler.returncode}",
            file=sys.stderr,
        )
        return 2
    return 1 if num_violations else 0


if __name__ == "__main__":
    sys.exit(main())
