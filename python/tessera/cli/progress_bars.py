"""The progress bars of commands: on stderr, and only if that is a terminal."""

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
    """A bar for steps that are counted."""
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
    """A bar for one step of unknown duration; shows the elapsed time.

    is_timed: the step is timed, so the bar must not refresh meanwhile.
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
    """Load the library, which every command needs; takes seconds if torch is installed."""
    if "tvm_ffi" not in sys.modules:
        with working("loading"):
            version()


@contextmanager
def reading_bar(paths: Sequence[Path]) -> Iterator[routing_log.Progress | None]:
    """Yields a function to call with the number of bytes read, which moves a bar on stderr.

    None if stderr is not a terminal, or the files are small.
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
