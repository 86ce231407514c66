"""The limits of what is read, and the memory that they bound."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.cli.main import main
from tessera.routing_log import MAX_EXPERTS, MAX_LAYERS, MAX_LINE_BYTES, MAX_TOP_K
from tessera.tools.inspection.logs import MAX_TOTAL_EXPERTS
from tessera.tools.routing_files import responses
from tessera.tools.routing_files.responses import MAX_RESPONSE_BYTES

# Prints the bytes that a command takes with its imports. On Linux ru_maxrss counts what the process
# that started this one had taken, which is more than the limit if that has run many tests.
COMMAND = """
import re, resource, sys
from pathlib import Path
from tessera.cli.main import main
code = main(sys.argv[1:])
if sys.platform == "linux":
    taken = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
else:
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(taken, file=sys.stderr)
exit(code)
"""


def test_the_page_has_the_limits() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/inspect.md"
    if not page.exists():
        pytest.skip(f"no page {page}")
    table = page.read_text().partition("| limit | |\n|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [
        f"| experts | {MAX_EXPERTS:,}, and {MAX_TOTAL_EXPERTS:,} over all layers of all logs |",
        f"| layers in a log | {MAX_LAYERS:,} |",
        f"| ids per token | {MAX_TOP_K:,} |",
        f"| bytes in a line | {MAX_LINE_BYTES:,} |",
        f"| bytes in a response, as one document or one line | {MAX_RESPONSE_BYTES:,} |",
    ]


@pytest.mark.parametrize("command", ["inspect --keep-repeated", "align"])
def test_the_largest_responses_take_less_than_1_gb(command: str, tmp_path: Path) -> None:
    """As lists they take most where each holds a single id; two lines are not held at once."""
    begin, row, end = '{"routed_experts":[', "[[1]],", "[[1]]]}\n"
    count = (MAX_RESPONSE_BYTES - len(begin) - len(end)) // len(row)
    path = tmp_path / "a.jsonl"
    path.write_text(2 * (begin + row * count + end))
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *command.split(), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0
    assert int(done.stderr) < 1_000_000_000


def test_a_long_response_is_refused_before_it_is_parsed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_RESPONSE_BYTES", 1000)
    monkeypatch.setattr(responses, "_decoded", lambda document: 1 / 0)
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'{"routed_experts": [' + b"[[1, 2]], " * 100_000))
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"tessera inspect: {path}:1: expected a document of at most 1000 bytes, got a longer one\n"
    )
