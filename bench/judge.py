"""Judges an implementation with `tessera verify --impl`, and writes a file of results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tessera.tools.bench.machine import description
from tessera.tools.bench.results import command_text, write_results


def main() -> None:
    """Judge one implementation; other options are passed on to `tessera verify`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="name of the implementation on the page")
    parser.add_argument("version", help="version of the implementation")
    parser.add_argument("file", type=Path, help="where to write the results")
    parser.add_argument("--commit", help="commit to record if git does not know it")
    options, passed = parser.parse_known_args()
    command = ["verify", *passed, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tessera", *command], stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 1, 3):  # a verdict, perhaps on part of the calls
        sys.exit(done.returncode)
    found = json.loads(done.stdout)
    device = "cuda" if found["device"].startswith("cuda") else "cpu"
    document = {
        "name": options.name,
        "version": options.version,
        **description(device, options.commit),
        "command": command_text(command),
        "verdict": found,
    }
    write_results(options.file, document)


if __name__ == "__main__":
    main()
