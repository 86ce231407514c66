"""Runs `tune_policy`, and writes what it prints as a file of results."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from tessera.tools.bench.machine import description
from tessera.tools.bench.results import write_results


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="tune_policy, as it was built")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--commit", metavar="REV", help="what to record where git cannot tell")
    options = parser.parse_args()
    done = subprocess.run([options.program], stdout=subprocess.PIPE, text=True, check=True)
    document = {**description("cuda", options.commit), **json.loads(done.stdout)}
    write_results(options.json, document)


if __name__ == "__main__":
    main()
