"""Draws the pictures of docs/choosing-a-block-size.md from the recorded routing logs.

The logs lie in the folder TESSERA_TRACES, by default ../shared/traces. With --check nothing is
written: it names the pictures that differ from what it would draw, and exits with 1 if there are
any.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRACES = Path(os.environ.get("TESSERA_TRACES", ROOT / "../shared/traces"))
PAGE = ROOT / "docs/choosing-a-block-size.md"
PICTURE = re.compile(r"\((pictures/(\w+)/\w+\.svg)\)")
# The log of each folder of pictures.
LOGS = {
    "olmoe": "olmoe-1b-7b_layer0.jsonl",
    "qwen0": "qwen1.5-moe-a2.7b_layer0.jsonl",
    "qwen12": "qwen1.5-moe-a2.7b_layer12.jsonl",
}


def drawn() -> dict[Path, str]:
    """Each picture that the page shows, and its text."""
    pictures = {}
    shown = PICTURE.findall(PAGE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        for folder in sorted({folder for _, folder in shown}):
            out = Path(scratch) / "pictures" / folder
            command = ["inspect", TRACES / LOGS[folder], "--pictures", out]
            subprocess.run(
                [sys.executable, "-m", "tessera", *command], check=True, stdout=subprocess.DEVNULL
            )
        for name, _ in shown:
            pictures[ROOT / "docs" / name] = (Path(scratch) / name).read_text(encoding="utf-8")
    return pictures


def main() -> int:
    """Write the pictures, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if one differs")
    check = parser.parse_args().check
    pictures = drawn()
    kept = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/pictures/*/*.svg")}
    wrong = {path for path in {*kept, *pictures} if kept.get(path) != pictures.get(path)}
    for path in sorted(wrong):
        print(path.relative_to(ROOT))
        if check:
            continue
        path.unlink(missing_ok=True)
        if path in pictures:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pictures[path], encoding="utf-8")
    return 1 if check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
