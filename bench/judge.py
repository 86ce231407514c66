"""Judges an implementation with `tessera verify --impl`, and writes a file of results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tessera.tools.bench.machine import description
from tessera.tools.bench.results import write_results


def main() -> None:
    """Judge one implementation; all that is not known here goes to `tessera verify`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="what the page calls it")
    parser.add_argument("version", help="of the implementation")
    parser.add_argument("file", type=Path, help="where to write the results")
    parser.add_argument("--commit", help="what to record where git cannot tell")
    options, passed = parser.parse_known_args()
    command = ["verify", *passed, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tessera", *command], stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 1, 3):  # a verdict, if of part of the calls
        sys.exit(done.returncode)
    found = json.loads(done.stdout)
    device = "cuda" if found["device"].startswith("cuda") else "cpu"
    document = {
        "name": options.name,
        "version": options.version,
        **description(device, options.commit),
        "command": " ".join(["tessera", *command]),
        "verdict": found,
    }
    write_results(options.file, document)


if __name__ == "__main__":
    main()
