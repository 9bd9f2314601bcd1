"""The folder of an export: written beside its name and moved there whole, read without following a link."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from broker.errors import Invalid, NotProven


class ExportFolder:
    """Reads the files of an export. Implements `broker.audit.export.Files`.

    Raises:
        Invalid: There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise Invalid("DIR", f"{folder} is no folder", hint="make one with: broker audit export DIR")
        self._folder = folder

    def names(self) -> Sequence[str]:
        """Return the name of each file that there is. Raises NotProven: one is a link, or no file."""
        found: list[str] = []
        for folder, folders, files in os.walk(self._folder, onerror=_unreadable):
            for name in (*folders, *files):
                path = Path(folder) / name
                shown = path.relative_to(self._folder).as_posix()
                # What it leads to could be another file at each look.
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    raise NotProven(f"{shown}: is a link or no plain file, and an export has none")
                if name in files:
                    found.append(shown)
        return found

    def read(self, name: str, most: int) -> bytes:
        """Return a file's bytes. Raises NotProven: longer than `most`, or it cannot be read."""
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(most + 1)
        except OSError as bad:
            raise NotProven(f"{name}: {bad.strerror or bad}") from bad
        if len(data) > most:
            raise NotProven(f"{name}: is longer than it can be, {most} bytes")
        return data


class NewExport:
    """A folder that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, data: bytes) -> None:
        """Write a file that is not there yet."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def new_export(folder: Path) -> Iterator[NewExport]:
    """Yield a folder to write to; it gets its name once all of it is on disk, and goes away if something fails.

    Raises:
        Invalid: Something is there already, or the folder above is not.
        OSError: It cannot be written.
    """
    must_be_new(folder)
    partial = folder.absolute().with_name(f".{folder.absolute().name}.{secrets.token_hex(8)}.partial")
    partial.mkdir(mode=0o700)
    try:
        yield NewExport(partial)
        # An empty folder in its place is replaced, anything else is not.
        partial.rename(folder)
        descriptor = os.open(folder.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def must_be_new(folder: Path) -> None:
    """Raise Invalid unless the folder can be made: an empty one may be there."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise Invalid("DIR", f"{folder} is there already, and no folder", hint="name a new one")
    if folder.is_dir() and any(folder.iterdir()):
        raise Invalid("DIR", f"{folder} is not empty", hint="name a new folder: an export is written once")
    if not folder.absolute().parent.is_dir():
        raise Invalid("DIR", f"{folder.absolute().parent} is no folder", hint="make it first")


def _unreadable(problem: OSError) -> None:
    raise NotProven(f"{problem.filename}: {problem.strerror or problem}")
