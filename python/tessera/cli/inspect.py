"""tessera inspect: show the routing in logs, and advise a block size for each batch size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tessera.cli.inspect_summary import print_summary
from tessera.cli.progress_bars import reading_bar
from tessera.inspection import inspect_logs
from tessera.routing_log import MAX_EXPERTS, MAX_LAYERS, MAX_LINE_BYTES, MAX_TOP_K


def _experts(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_EXPERTS:
        raise argparse.ArgumentTypeError(f"expected an integer in [1, {MAX_EXPERTS}], got '{text}'")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Logs are streamed: the memory taken does not depend on their length, and stays below 1 GB "
        f"for all that is accepted: {MAX_EXPERTS:,} experts, {MAX_LAYERS:,} layers, "
        f"{MAX_TOP_K:,} ids a token, {MAX_LINE_BYTES:,} bytes a line. "
        "Exit codes: 0, all is well; 2, bad usage or input."
    )
    add = parser.add_argument
    add(
        "logs",
        nargs="+",
        type=Path,
        metavar="LOG",
        help="routing logs (.jsonl), or ids [tokens, top_k] as .npy, or .npz of topk_ids and, "
        "where known, num_experts",
    )
    add(
        "--experts",
        type=_experts,
        metavar="E",
        help="number of experts (default: what a log says, else its model's largest id + 1)",
    )
    add("--skip-bad-lines", action="store_true", help="count bad lines of logs, and go on")
    add(
        "--keep-repeated",
        action="store_true",
        help="count long runs of equal rows, such as an engine's warm-up, as traffic",
    )
    add("--json", action="store_true", help="print one JSON document")
    add("--html", type=Path, metavar="FILE", help="write the report as one HTML file")
    add("--pictures", type=Path, metavar="FOLDER", help="write the report's pictures as SVG files")
    add("--force", action="store_true", help="overwrite what --html and --pictures name")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.html is not None or args.pictures is not None:
        _check_outputs(args.html, args.pictures, args.force)
    with reading_bar(args.logs) as progress:
        document = inspect_logs(
            args.logs,
            num_experts=args.experts,
            skip_bad_lines=args.skip_bad_lines,
            keep_repeated=args.keep_repeated,
            progress=progress,
        )
    if args.html is not None:
        from tessera.report import write_html

        write_html(document, args.html)
    if args.pictures is not None:
        from tessera.report import write_pictures

        write_pictures(document, args.pictures)
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        print_summary(document)
    return 0


def _check_outputs(html: Path | None, pictures: Path | None, force: bool) -> None:
    """Refuse, before anything is read, what could not be written."""
    from tessera import report

    report.require()
    if html is not None:
        if html.is_dir():
            raise ValueError(f"--html: expected a file, got the folder {html}")
        if not html.parent.is_dir():
            raise ValueError(f"--html: there is no folder {html.parent}")
        if html.exists() and not force:
            raise ValueError(f"{html}: exists already; --force overwrites it")
    if pictures is not None:
        if pictures.exists() and not pictures.is_dir():
            raise ValueError(f"--pictures: expected a folder, got the file {pictures}")
        if pictures.is_dir() and any(pictures.iterdir()) and not force:
            raise ValueError(f"{pictures}: exists already, and is not empty; --force overwrites it")
