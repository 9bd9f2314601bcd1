"""The file of a completion: written in one step, never over another file unless told to."""

import os
from collections.abc import Iterable
from pathlib import Path

from broker.edge.cli.problems import Misused, Unusable


def must_be_free(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before anything is done that cannot be undone.

    Raises:
        Misused: It is there already, or its folder is not.
    """
    if path.exists() and not force:
        raise _taken(path)
    if not path.absolute().parent.is_dir():
        raise Misused(f"{path.parent} is no folder", hint="make it first")


def export(statements: Iterable[str], path: Path, *, force: bool) -> None:
    """Write one line for each statement: all of the file or nothing of it.

    Raises:
        Misused: The file is there already, and `force` is false.
        Unusable: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(f"{statement}\n" for statement in statements)
            file.flush()
            os.fsync(file.fileno())
        if force:
            partial.replace(path)
        else:
            # Unlike a rename it never replaces, also if somebody else's file came into being meanwhile.
            path.hardlink_to(partial)
    except FileExistsError as taken:
        raise _taken(path) from taken
    except OSError as bad:
        raise Unusable(
            f"{path}: {bad.strerror or bad}", reason="FILE", hint="the completion is kept by the broker, too"
        ) from bad
    finally:
        partial.unlink(missing_ok=True)


def _taken(path: Path) -> Misused:
    return Misused(f"{path} is there already", hint="name a new file, or add --force to overwrite it")
