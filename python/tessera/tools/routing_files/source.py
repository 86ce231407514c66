"""Files to read: plain or compressed, and standard input."""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from tessera.routing_log import Progress, open_log

STANDARD_INPUT = Path("-")
# Enough for the first record of a log, and for a key of a response that text precedes.
_HEAD_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"

# Copies of what can be read once only, standard input and pipes: commands read twice.
_copies: dict[Path, tempfile._TemporaryFileWrapper[bytes]] = {}


class File:
    """A file, whose content a format recognises and reads. Compressed files are read as theirs.

    name: stands for the file in messages.
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.name = "standard input" if path == STANDARD_INPUT else str(path)
        self._progress = progress

    @cached_property
    def head(self) -> bytes:
        """The beginning of the content."""
        with self.open(counted=False) as stream:
            return stream.read(_HEAD_BYTES)

    @property
    def suffix(self) -> str:
        """What the name ends in, in small letters, without `.gz`."""
        path = self.path.with_suffix("") if self.path.suffix.lower() == ".gz" else self.path
        return path.suffix.lower()

    def open(self, *, counted: bool = True) -> BinaryIO:
        """The content from its beginning. `counted`: what is read moves the progress."""
        stream = self._stored(self._progress if counted else None)
        return cast(BinaryIO, _Unpacked(stream)) if self._is_compressed else stream

    @cached_property
    def _is_compressed(self) -> bool:
        with self._stored(None) as stream:
            return stream.read(2) == _GZIP

    def _stored(self, progress: Progress | None) -> BinaryIO:
        if self.path != STANDARD_INPUT and (not self.path.exists() or not _is_pipe(self.path)):
            return open_log(self.path, progress)
        if self.path == STANDARD_INPUT and sys.stdin is None:
            raise ValueError(f"{self.name}: expected a file or a pipe, got a closed one")
        if self.path not in _copies:
            copy = tempfile.NamedTemporaryFile(prefix="tessera-")  # noqa: SIM115
            if self.path == STANDARD_INPUT:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            else:
                with self.path.open("rb") as stream:
                    shutil.copyfileobj(stream, copy)
            copy.flush()
            _copies[self.path] = copy
        return open_log(_copies[self.path].name, None)


class _Unpacked(gzip.GzipFile):
    """The content of a .gz file; closes the file below."""

    def __init__(self, stored: BinaryIO) -> None:
        super().__init__(fileobj=stored, mode="rb")
        self._stored = stored

    def close(self) -> None:
        super().close()
        self._stored.close()


def _is_pipe(path: Path) -> bool:
    return path.is_fifo() or path.is_char_device()


def seekable(stream: BinaryIO) -> BinaryIO:
    """The same content where it can be read in any order at little cost."""
    if not isinstance(stream, gzip.GzipFile):
        return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    with stream:
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return cast(BinaryIO, copy)
