"""Sums the JUnit XML reports of several test runners.

Usage: test_summary.py (NAME REPORT.xml EXIT_STATUS)...

Lists skips with their reasons, and failures, and ends with `N passed, N failed, N skipped`. A
runner that reports no failure although its exit status is not 0, or that left no readable report,
counts as one failure. Exits with 1 if anything failed or nothing passed.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path


def skip_reason(case: ET.Element, skipped: ET.Element) -> str:
    """The reason of a skip: GoogleTest prints it to the output, pytest puts it into the report."""
    printed = re.search(
        r": Skipped\n(.*?)\n*\[  SKIPPED \]", case.findtext("system-out") or "", re.DOTALL
    )
    reason = printed[1] if printed else skipped.get("message", "")
    return " ".join(reason.split()) or "no reason given"


def read_report(runner: str, path: Path) -> tuple[int, list[str], list[str]]:
    """Number of passed tests, failed tests, and skipped tests with their reasons."""
    passed, failed, skipped = 0, [], []
    for case in ET.parse(path).getroot().iter("testcase"):
        # ctest gives a test's name twice.
        parts = dict.fromkeys((case.get("classname", ""), case.get("name", "")))
        name = f"{runner}: " + "::".join(filter(None, parts))
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            skipped.append(f"{name}: {skip_reason(case, skip)}")
        else:
            passed += 1
    return passed, failed, skipped


def main(arguments: list[str]) -> int:
    """Prints the sum; see the module's text."""
    passed, failed, skipped = 0, list[str](), list[str]()
    for runner, path, exit_status in zip(*[iter(arguments)] * 3, strict=True):
        try:
            counts = read_report(runner, Path(path))
        except (OSError, ET.ParseError) as error:
            failed.append(f"{runner}: no readable report: {error}")
            continue
        passed += counts[0]
        failed += counts[1]
        skipped += counts[2]
        if exit_status != "0" and not counts[1]:
            failed.append(f"{runner}: exit status {exit_status} without a failed test")

    print()
    # The parameters of a skipped test add nothing to its reason.
    for line, count in Counter(re.sub(r"\[.*\](?=: )", "", line) for line in skipped).items():
        print(f"skipped  {line}" + (f" ({count} tests)" if count > 1 else ""))
    for line in failed:
        print(f"FAILED   {line}")
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
