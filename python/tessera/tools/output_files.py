"""Files that a command writes: checked before any work, and written completely or not at all."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from tessera.tools.printable import printable
from tessera.tools.routing_files.source import STANDARD_INPUT

# The content of a file, or a function that writes it to an open file.
Content = bytes | Callable[[IO[bytes]], object]


class Output(NamedTuple):
    """The file or folder that an option names for writing.

    suffix: the suffix of the files in a folder; empty if `path` is a file.
    file_suffix: the suffix that the file must have; empty if it may have any.
    """

    option: str
    path: Path
    suffix: str = ""
    file_suffix: str = ""


def check_outputs(outputs: Sequence[Output], inputs: Sequence[Path], *, force: bool) -> None:
    """Before any work, refuse outputs that cannot or must not be written.

    Args:
        outputs: files and folders to write.
        inputs: files to read, which no output may be, also not through links; `STANDARD_INPUT`
            stands for the file that is open there.
        force: other files may be overwritten.

    Raises:
        ValueError: an output is an input or another output, exists and must not be overwritten, has
            another suffix than it must have, or is a folder instead of a file or vice versa.
        OSError: it cannot be written.
    """
    for place, output in enumerate(outputs):
        (_check_folder if output.suffix else _check_file)(output, inputs, force)
        for other in outputs[:place]:
            if _collide(output, other):
                raise ValueError(
                    f"{output.option}: expected another file than {other.option} writes, "
                    f"got {output.path}"
                )
    for output in outputs:
        _try_to_write(output)


def write_files(contents: Mapping[Path, Content], *, force: bool) -> None:
    """Write all of the files, or none if one cannot be written.

    Readers see either the old or the complete new file. A replaced file keeps its mode, links are
    followed, devices and pipes are written to, and missing folders are created.

    Args:
        contents: of each file.
        force: files that are there may be overwritten. Otherwise each name is taken before its file
            is moved there, so that none is replaced that came there after `check_outputs`.

    Raises:
        ValueError: a file is there, and is not to be overwritten.
        OSError: a file cannot be written; the error has its name.
    """
    drafts: list[tuple[Path, Path, Path]] = []
    folders: list[Path] = []
    taken: list[Path] = []
    try:
        for path, content in contents.items():
            with _naming(path):
                if path.exists() and not path.is_file():
                    with path.open("wb") as file:
                        _fill(file, content)
                    continue
                target = Path(os.path.realpath(path))
                for folder in _missing_folders(target.parent):
                    folder.mkdir()
                    folders.append(folder)
                draft = _draft_beside(target)
                drafts.append((draft, target, path))
                with draft.open("xb") as file:
                    _fill(file, content)
                    os.fsync(file.fileno())
                if target.exists():
                    draft.chmod(stat.S_IMODE(target.stat().st_mode))
        if not force:
            for _, target, path in drafts:
                _take(target, path)
                taken.append(target)
        for draft, target, path in drafts:
            with _naming(path):
                draft.replace(target)
    except BaseException:
        for mine in (*taken, *(draft for draft, _, _ in drafts)):
            mine.unlink(missing_ok=True)
        for folder in reversed(folders):
            with suppress(OSError):  # not empty: another program has written to it
                folder.rmdir()
        raise


def print_written(paths: Sequence[Path], *, beside_json: bool) -> None:
    """Print what was written, to stdout unless that carries a JSON document."""
    for path in paths:
        print(f"wrote {printable(str(path))}", file=sys.stderr if beside_json else sys.stdout)


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file, or would if it existed."""
    with suppress(OSError):
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def is_input(path: Path, read: Path) -> bool:
    """Whether a path leads to the file that an input reads, which may be `STANDARD_INPUT`."""
    if read != STANDARD_INPUT:
        return is_same_file(path, read)
    if sys.stdin is None:  # closed: its descriptor may be that of any file by now
        return False
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(0))
    return False


def _check_file(output: Output, inputs: Sequence[Path], force: bool) -> None:
    option, path, _, suffix = output
    if path.is_dir():
        raise ValueError(f"{option}: expected a file, got the folder {path}")
    for read in inputs:
        if is_input(path, read):
            raise ValueError(f"{option}: expected another file than the input {read}, got {path}")
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"{option}: there is no folder {folder}")
    # Replacing the file behind /dev/stdout would not affect the file that is open there.
    within = os.path.realpath(folder)
    if path.is_file() and (within == "/dev" or within.startswith("/proc/")):
        raise ValueError(f"{option}: expected the file's own name, got {path}, where it is open")
    # A device or a pipe is not read again by its name.
    if suffix and path.suffix != suffix and (path.is_file() or not path.exists()):
        raise ValueError(f"{option}: expected a {suffix} file, got {path}")
    if path.is_file() and not force:  # a device or a pipe loses nothing
        raise _existing(path)


def _check_folder(output: Output, inputs: Sequence[Path], force: bool) -> None:
    option, path, suffix, _ = output
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option}: expected a folder, got the file {path}")
    held = list(path.iterdir()) if path.is_dir() else []
    for file in held:
        for read in inputs:
            if file.suffix == suffix and is_input(file, read):
                raise ValueError(
                    f"{option}: expected a folder without the input {read}, got {path}, where "
                    f"{file.name} is that file"
                )
    if held and not force:
        raise ValueError(f"{path}: exists already, and is not empty; --force overwrites it")


def _collide(one: Output, other: Output) -> bool:
    """Whether both may write the same file."""
    if bool(one.suffix) == bool(other.suffix):
        return is_same_file(one.path, other.path)
    file, folder = (other, one) if one.suffix else (one, other)
    target = Path(os.path.realpath(file.path))
    if is_same_file(file.path, folder.path):
        return True
    if target in Path(os.path.realpath(folder.path)).parents:  # a folder beneath a file
        return True
    if target.suffix == folder.suffix and is_same_file(target.parent, folder.path):
        return True
    held = folder.path.iterdir() if folder.path.is_dir() else ()
    return any(kept.suffix == folder.suffix and is_same_file(kept, file.path) for kept in held)


def _try_to_write(output: Output) -> None:
    """Raise the error that writing would raise, as far as that is known in advance."""
    path = output.path
    with _naming(path):
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "")
        if path.exists() and not (path.is_file() or path.is_dir()):
            return
        folder = Path(os.path.realpath(path)) / "file" if output.suffix else os.path.realpath(path)
        nearest = Path(folder).parent
        while not nearest.exists():
            nearest = nearest.parent
        draft = _draft_beside(nearest / "file")
        try:
            draft.open("xb").close()
        finally:
            draft.unlink(missing_ok=True)


def _existing(path: Path) -> ValueError:
    return ValueError(f"{path}: exists already; --force overwrites it")


def _take(target: Path, path: Path) -> None:
    """Make the empty file `target`; refuse if there is one, by the name `path`."""
    with _naming(path):
        try:
            target.open("xb").close()
        except FileExistsError:
            raise _existing(path) from None


def _draft_beside(path: Path) -> Path:
    return path.with_name(f".tessera-{secrets.token_hex(8)}")


def _fill(file: IO[bytes], content: Content) -> None:
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)
    file.flush()


def _missing_folders(folder: Path) -> list[Path]:
    """The missing folders, from the outermost on."""
    missing: list[Path] = []
    while not folder.exists():
        missing.insert(0, folder)
        folder = folder.parent
    return missing


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives system errors the name of the file to write, not of its draft."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
