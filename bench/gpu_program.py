"""What the programs that measure on a GPU for the performance page have in common."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def options_of(parser: argparse.ArgumentParser, results: str) -> argparse.Namespace:
    """The options of a program, --json and --commit among them, where a GPU is.

    Args:
        parser: has the program's other options.
        results: the name of the page's file in the folder of a GPU.

    Ends the program, with a message, where nothing can be measured.
    """
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"where to write the results, bench/results/<gpu>/{results} for the performance page; "
        "is overwritten",
    )
    parser.add_argument("--commit", metavar="REV", help="what to record where git cannot tell")
    options = parser.parse_args()
    if options.json and options.json.is_dir():
        parser.error(f"--json: expected a file, got the folder {options.json}")
    name = Path(results).stem
    try:
        import torch
    except ImportError:
        sys.exit(f"{name}: expected torch, which is not installed")
    if not torch.cuda.is_available():
        sys.exit(f"{name}: expected a CUDA device, torch finds none")
    return options
