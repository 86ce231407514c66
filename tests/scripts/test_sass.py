"""`scripts/check_sass.py`: main loops are found, and what they must not hold is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_sass.py"

# What cuobjdump prints of two kernels, with most instructions left out. In the first one the loop
# of a tile ends at 0x1340, that over tiles at 0x6550; the waits behind it lead back into both.
WGMMA = """
Fatbin elf code:
================
arch = sm_90

	code for sm_90a

		Function : _ZN7tessera4cuda13wgmma_productI13__nv_bfloat16Lb0ELi1EEEvNS0_9WgmmaArgsE
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*05c0*/                   IMAD R18, R9, 0x8, R2 ;  /* 0x0000000809127824 */
                                                            /* 0x007fe200078e0202 */
        /*0650*/                   LDS.128 R152, [R152+0x38800] ;  /* 0x0388000098987984 */
        /*0c30*/                   IMAD R19, R13, 0x8, R2.reuse ;  /* 0x000000080d137824 */
        /*0ce0*/              @!P0 BRA 0x8150 ;  /* 0x0000007400188947 */
        /*0cf0*/                   WARPSYNC.ALL ;  /* 0x0000000000007948 */
        /*0e60*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24, UP0 ;  /* 0x03 */
        /*0f30*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24 ;  /* 0x03e0 */
        /*0f90*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24 ;  /* 0x03e0 */
        /*0ff0*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24, gsb0 ;  /* 0x */
        /*1000*/               @P0 BRA 0x1210 ;  /* 0x0000000000800947 */
        /*1180*/                   LDG.E.U16 R20, desc[UR6][R20.64] ;  /* 0x0000000614147981 */
        /*1210*/                   BSYNC B3 ;  /* 0x0000000000037941 */
        /*12e0*/              @!P0 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R13+URZ+0x38840], RZ ;  /* 0x03 */
        /*1340*/              @!P1 BRA 0xc30 ;  /* 0xfffffff800389947 */
        /*1420*/                   STL.64 [R1], R2 ;  /* 0x0000000201007387 */
        /*2aa0*/                   LDL.LU.64 R2, [R1] ;  /* 0x0000000001027983 */
        /*6550*/                   BRA 0x5c0 ;  /* 0xffffffa000187947 */
        /*8150*/                   YIELD ;  /* 0x0000000000007946 */
        /*8160*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R19+URZ+0x38820], R18 ;
        /*8170*/              @!P0 BRA 0x8150 ;  /* 0xfffffffc00f48947 */
        /*8180*/                   BRA 0xcf0 ;  /* 0xffffff8800d87947 */
        /*8190*/                   UTMALDG.4D [UR8], [UR4] ;  /* 0x00000008040075b4 */
        /*81a0*/                   IADD3 R2, R2, 0x80, RZ ;  /* 0x0000008002027810 */
        /*81b0*/                   LDGSTS.E.BYPASS.128 [R39], desc[UR8][R20.64], !P3 ;
        /*81c0*/                   LDL R2, [R1] ;  /* 0x0000000001027983 */
		..........
"""
MMA = """
	code for sm_90
	.target	sm_90

		Function : _ZN7tessera4cuda14product_kernelI13__nv_bfloat16Lm0ELNS0_12WeightAccessE0E
        /*0000*/                   LDC R1, c[0x0][0x28] ;  /* 0x00000a00ff017b82 */
        /*2d30*/                   ISETP.GT.AND P0, PT, R9, R2, PT ;  /* 0x000000020900720c */
        /*2d80*/              @!P0 BRA 0x2ff0 ;  /* 0x0000000000988947 */
        /*2fe0*/                   LDGSTS.E.BYPASS.128 [R39+0xe800], desc[UR8][R20.64], !P3 ;
        /*2ff0*/                   BSYNC B0 ;  /* 0x0000000000007941 */
        /*30a0*/                   LDSM.16.M88.4 R24, [R50] ;  /* 0x000000003218783b */
        /*30d0*/                   HMMA.16816.F32.BF16 R12, R20.reuse, R24, R12 ;  /* 0x00000018 */
        /*30e0*/                   HMMA.16816.F32.BF16 R16, R20, R26, R16 ;  /* 0x0000001a */
        /*3310*/              @!P0 BRA 0x2d30 ;  /* 0xfffffff800848947 */
        /*3320*/                   S2R R4, SR_TID.X ;  /* 0x0000000000047919 */

		Function : _ZN7tessera4cuda12find_expertsENS0_9PairsArgsE
        /*0000*/                   STL [R1], R2 ;  /* 0x0000000201007387 */
"""
# The same kernel for numbers in float8_e4m3fn.


def in_fp8(text: str) -> str:
    """The same kernel with the scales of numbers in float8_e4m3fn as a template argument."""
    name = ("productI13__nv", "productILNS0_7ScalingE1E13__nv")
    return text.replace(*name).replace("HGMMA", "QGMMA")


FP8 = in_fp8(WGMMA)


def run(folder: Path, sass: str, *, exit_status: int = 0) -> subprocess.CompletedProcess[str]:
    """The script's run on a module, where cuobjdump prints this."""
    module, program = folder / "module.so", folder / "cuobjdump"
    module.write_text(sass)
    program.write_text(f'#!/bin/sh\n[ "$1" = -sass ] && /bin/cat "$2" && exit {exit_status}\n')
    program.chmod(0o755)
    return subprocess.run(
        [sys.executable, SCRIPT, module],
        env=os.environ | {"PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def violations(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The violations that the script prints, behind the kernels' names."""
    lines = done.stdout.splitlines()
    found = [line.split(": ", 2)[-1] for line in lines if line.startswith("VIOLATION: ")]
    assert (done.returncode, done.stderr) == (1 if found else 0, "")
    assert lines[-1].endswith(f"; {len(found)} violations")
    return found


def test_counts_of_kernels_and_of_their_main_loops(tmp_path: Path) -> None:
    """Local memory outside of a main loop, or in another kernel, does no harm."""
    done = run(tmp_path, WGMMA + FP8 + MMA)
    assert violations(done) == []
    wgmma, fp8, mma, total = done.stdout.splitlines()
    assert wgmma == (
        "sm_90a _ZN7tessera4cuda13wgmma_productI13__nv_bfloat16Lb0ELi1EEEvNS0_9WgmmaArgsE: "
        "25 instructions, 4 HGMMA, 2 LDL, 1 STL, 0 CALL; "
        "main loop 0xc30-0x1340: 12, 4 HGMMA, 0 LDL, 0 STL, 0 CALL"
    )
    assert fp8 == in_fp8(wgmma)
    assert mma.startswith("sm_90 _ZN7tessera4cuda14product_kernelI13__nv_bfloat16")
    assert mma.endswith(
        "10 instructions, 2 HMMA, 0 LDL, 0 STL; main loop 0x2d30-0x3310: 8, 2 HMMA, 0 LDL, 0 STL"
    )
    assert total == "3 kernels checked: 1 with HGMMA, 1 with QGMMA, 1 with HMMA; 0 violations"


@pytest.mark.parametrize(
    ("there", "planted", "expected"),
    [
        ("LDG.E.U16 R20, desc[UR6][R20.64]", "LDL.LU R20, [R1+0x4]", "LDL at 0x1180"),
        ("IMAD R19, R13, 0x8, R2.reuse", "STL [R1], R2", "STL at 0xc30"),
        ("BSYNC B3", "@P0 CALL.REL.NOINC 0x9000", "CALL at 0x1210"),
    ],
)
def test_what_a_loop_of_hgmma_must_not_hold(
    there: str, planted: str, expected: str, tmp_path: Path
) -> None:
    assert WGMMA.count(there) == 1
    found = violations(run(tmp_path, WGMMA.replace(there, planted) + FP8 + MMA))
    assert found == [f"{expected}, in the main loop 0xc30-0x1340"]
    found = violations(run(tmp_path, WGMMA + FP8.replace(there, planted) + MMA))
    assert found == [f"{expected}, in the main loop 0xc30-0x1340"]


def test_copies_by_warps_that_multiply_may_lie_beside_local_memory(tmp_path: Path) -> None:
    sass = WGMMA.replace("LDS.128 R152, [R152+0x38800]", "LDGSTS.E [R39], desc[UR8][R20.64]")
    assert sass != WGMMA
    assert violations(run(tmp_path, sass + in_fp8(sass) + MMA)) == []


@pytest.mark.parametrize("planted", ["LDL.LU R20, [R1+0x4]", "@P0 STL [R1], R2"])
def test_copies_use_no_local_memory(planted: str, tmp_path: Path) -> None:
    sass = WGMMA.replace("IADD3 R2, R2, 0x80, RZ", planted)
    name = "LDL" if "LDL" in planted else "STL"
    expected = [f"{name} at 0x81a0, among copies 0x8190-0x81b0"]
    assert violations(run(tmp_path, sass + FP8 + MMA)) == expected
    sass = sass.replace("UTMALDG.4D [UR8], [UR4]", "UBLKCP [UR8], [UR4]")
    assert violations(run(tmp_path, sass + FP8 + MMA)) == expected
    sass = sass.replace("UBLKCP", "NOP").replace("LDGSTS.E.BYPASS.128", "NOP")
    expected = ["expected copies by LDGSTS, UTMALDG, UBLKCP, found none"]
    assert violations(run(tmp_path, sass + FP8 + MMA)) == expected


def test_a_loop_must_not_wait_for_every_multiplication(tmp_path: Path) -> None:
    """As the compiler makes it do where it cannot tell what the multiplications have written."""
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;"
    for multiply, kernels in (("HGMMA", (WGMMA, FP8)), ("QGMMA", (FP8, WGMMA))):
        sass, places = kernels[0], ("0ce0", "0cf0", "1000", "1180")
        for count, place in enumerate(places, start=1):
            begin = sass.index(f"/*{place}*/") + len(f"/*{place}*/")
            sass = sass[:begin] + f" {wait}" + sass[sass.index("\n", begin) :]
            found = violations(run(tmp_path, sass + kernels[1] + MMA))
            expected = f"expected fewer waits than {multiply} in the main loop 0xc30-0x1340, "
            assert found == ([f"{expected}found 4 and 4"] if count == 4 else [])


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ("@!P0 STL.64 [R1+0x8], R2", ["STL at 0x30a0, in the main loop 0x2d30-0x3310"]),
        ("LDL R2, [R1]", ["LDL at 0x30a0, in the main loop 0x2d30-0x3310"]),
        ("@P0 CALL.REL.NOINC 0x30b0", []),
    ],
)
def test_what_a_loop_of_hmma_must_not_hold(
    planted: str, expected: list[str], tmp_path: Path
) -> None:
    sass = MMA.replace("LDSM.16.M88.4 R24, [R50]", planted)
    assert violations(run(tmp_path, WGMMA + FP8 + sass)) == expected


def test_a_loop_around_a_main_loop_is_none(tmp_path: Path) -> None:
    """Although it multiplies outside of that loop, as with a first step of its own, and spills."""
    sass = WGMMA.replace("LDS.128 R152, [R152+0x38800]", "HGMMA.64x256x16.F32 R24, gdesc[UR12]")
    done = run(tmp_path, sass + FP8 + MMA)
    assert violations(done) == []
    first = done.stdout.partition("\n")[0]
    assert first.count("main loop") == 1
    assert "5 HGMMA, 2 LDL, 1 STL" in first


def test_every_main_loop_counts(tmp_path: Path) -> None:
    """A second loop behind the first one, with the only spill."""
    second = """
        /*3330*/                   HMMA.16816.F32.BF16 R12, R20.reuse, R24, R12 ;
        /*3340*/                   LDL R2, [R1] ;
        /*3350*/              @!P0 BRA 0x3330 ;

		Function : """
    head, name, tail = MMA.rpartition("\n\t\tFunction : ")
    assert name
    found = violations(run(tmp_path, WGMMA + FP8 + head + second + tail))
    assert found == ["LDL at 0x3340, in the main loop 0x3330-0x3350"]


def test_a_kernel_has_to_multiply_in_a_loop(tmp_path: Path) -> None:
    without = violations(run(tmp_path, WGMMA.replace("HGMMA", "HMMA") + FP8 + MMA))
    assert without == ["expected HGMMA in a loop, found none"]
    without = violations(run(tmp_path, WGMMA + FP8.replace("QGMMA", "HGMMA") + MMA))
    assert without == ["expected QGMMA in a loop, found none"]
    unrolled = violations(run(tmp_path, WGMMA + FP8 + MMA.replace("@!P0 BRA 0x2d30", "NOP")))
    assert unrolled == ["expected HMMA in a loop, found none"]


def test_kernels_have_to_be_there(tmp_path: Path) -> None:
    """A build for 8.0 alone has no kernels for 9.0a."""
    assert violations(run(tmp_path, "")) == [
        "expected kernels of products, product_kernel, found none"
    ]
    assert violations(run(tmp_path, MMA)) == [
        "expected kernels for sm_90a with HGMMA, found none",
        "expected kernels for sm_90a with QGMMA, found none",
    ]
    assert violations(run(tmp_path, WGMMA + MMA)) == [
        "expected kernels for sm_90a with QGMMA, found none"
    ]
    assert violations(run(tmp_path, MMA.replace("sm_90", "sm_80"))) == []


def test_what_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    done = run(tmp_path, WGMMA + MMA, exit_status=255)
    assert done.returncode == 2
    assert done.stderr == f"check_sass: cuobjdump -sass {tmp_path}/module.so: exit status 255\n"

    missing = tmp_path / "missing.so"
    command = [sys.executable, SCRIPT, missing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"check_sass: MODULE: expected a file, got {missing}\n"

    (tmp_path / "cuobjdump").unlink()
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "module.so"],
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "check_sass: expected cuobjdump of the CUDA toolkit on the PATH, found none\n"
    )
