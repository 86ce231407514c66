"""The progress bars of commands: on stderr, and only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tessera import routing_log
from tessera.info import version

# Files of this size take about two seconds.
_BYTES_WORTH_A_BAR = 100_000_000


def counting_bar() -> Progress:
    """For things done one after the other."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def working(what: str, *, is_timed: bool = False) -> Iterator[None]:
    """For one thing of which nobody knows how long it takes; shows for how long it has run.

    is_timed: nothing may run beside it, so that nothing moves.
    """
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=not is_timed,
        disable=not console.is_terminal,
    ) as bar:
        bar.add_task(what, total=None)
        bar.refresh()
        yield


def load_library() -> None:
    """Load what every command needs, which takes seconds where torch is installed."""
    if "tvm_ffi" not in sys.modules:
        with working("loading"):
            version()


@contextmanager
def reading_bar(paths: Sequence[Path]) -> Iterator[routing_log.Progress | None]:
    """Gives what to call with the bytes read, which moves a bar on stderr.

    None where that is no terminal, or the files are soon read.
    """
    total = sum(path.stat().st_size for path in paths if path.is_file())
    console = Console(stderr=True)
    if total < _BYTES_WORTH_A_BAR or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
