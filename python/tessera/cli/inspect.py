"""tessera inspect: show the routing in logs, and advise a block size for each batch size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tessera.cli.inputs import refuse_repeated
from tessera.cli.inspect_comparison import print_comparison
from tessera.cli.inspect_summary import print_summary
from tessera.cli.integers import integer
from tessera.cli.paths import nonempty_path
from tessera.cli.progress_bars import load_library, reading_bar
from tessera.cli.reading_options import FORMS, Once, add_reading_options, reading_options
from tessera.routing_log import MAX_EXPERTS, MAX_LAYERS, MAX_LINE_BYTES, MAX_TOP_K
from tessera.tools import report
from tessera.tools.inspection import inspect_logs
from tessera.tools.output_files import Content, Output, check_outputs, print_written, write_files
from tessera.tools.routing_files import STANDARD_INPUT
from tessera.tools.routing_files.responses import MAX_RESPONSE_BYTES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Logs are streamed: memory use does not depend on their length, and stays below 1 GB "
        f"for every accepted log: {MAX_EXPERTS:,} experts, {MAX_LAYERS:,} layers, "
        f"{MAX_TOP_K:,} ids per token, {MAX_LINE_BYTES:,} bytes per line, "
        f"{MAX_RESPONSE_BYTES:,} bytes per response. "
        "Exit codes: 0, all is well; 2, bad usage or input."
    )
    add = parser.add_argument
    add(
        "logs",
        nargs="+",
        type=nonempty_path,
        metavar="LOG",
        help=FORMS,
    )
    add(
        "--experts",
        action=Once,
        type=integer(1, MAX_EXPERTS),
        metavar="E",
        help="number of experts (default: the log's number, else its model's largest id + 1)",
    )
    add(
        "--top-k",
        action=Once,
        type=integer(1, MAX_TOP_K),
        metavar="K",
        help="experts to choose for each token, of router logits",
    )
    add(
        "--loads",
        action="store_true",
        help="integers are loads [layers, experts] rather than ids [tokens, top_k]",
    )
    add(
        "--keep-repeated",
        action="store_true",
        help="count long runs of equal rows, such as an engine's warm-up, as traffic",
    )
    add("--json", action="store_true", help="print one JSON document")
    add("--html", type=nonempty_path, metavar="FILE", help="write the report as one HTML file")
    add(
        "--pictures",
        type=nonempty_path,
        metavar="FOLDER",
        help="write the report's pictures as SVG files",
    )
    add("--force", action="store_true", help="overwrite the files of --html and --pictures")
    add_reading_options(parser, several=True)
    add(
        "--compare",
        action="store_true",
        help="show two logs side by side: before and after a change, or two models",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _check(args)
    load_library()
    with reading_bar(args.logs) as progress:
        document = inspect_logs(
            args.logs,
            reading_options(args),
            together=args.files,
            keep_repeated=args.keep_repeated,
            compared=args.compare,
            progress=progress,
        )
    contents: dict[Path, Content] = {}
    if args.html is not None:
        contents[args.html] = report.html(document)
    if args.pictures is not None:
        contents |= report.pictures(document, args.pictures)
    write_files(contents, force=args.force)
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        show = print_comparison if args.compare else print_summary
        show(document)
    print_written(list(contents), beside_json=args.json)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Before anything is read, refuse options without effect, and files that cannot be written."""
    refuse_repeated("LOG", args.logs)
    if args.compare and len(args.logs) != 2:
        raise ValueError(f"--compare: expected two LOG, got {len(args.logs)}")
    if args.compare and args.files is not None:
        raise ValueError("--compare: expected no --files beside it, which makes one of all LOG")
    outputs = []
    if args.html is not None:
        outputs.append(Output("--html", args.html))
    if args.pictures is not None:
        outputs.append(Output("--pictures", args.pictures, suffix=".svg"))
    if args.force and not outputs:
        raise ValueError("--force: expected --html or --pictures beside it")
    check_outputs(outputs, args.logs, force=args.force)
    for log in args.logs:
        if log != STANDARD_INPUT:
            log.stat()
    if args.html is not None:
        report.require()
