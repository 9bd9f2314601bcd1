"""The file of a completion or a proof: written in one step, never over another file unless told to."""

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
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
    document = "".join(f"{statement}\n" for statement in statements)
    write_new(document.encode("ascii"), path, force=force, hint="the completion is kept by the broker, too")


def write_new(data: bytes, path: Path, *, force: bool, hint: str) -> None:
    """Write a file: all of it or nothing. `hint` says what to do if it cannot be written.

    Raises:
        Misused: The file is there already, and `force` is false.
        Unusable: It cannot be written.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        # Never over, or through, what somebody else put there.
        with partial.open("xb") as file:
            file.write(data)
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
        raise Unusable(f"{path}: {bad.strerror or bad}", reason="FILE", hint=hint) from bad
    finally:
        # What went wrong before is told, not that there is nothing to remove.
        with suppress(OSError):
            partial.unlink()


def try_export(statements: Iterable[str], path: Path, *, force: bool, index: int) -> Unusable | None:
    """Write as `export`; return what to tell once the revocation, which stays done, has been told of."""
    try:
        export(statements, path, force=force)
    except (Misused, Unusable) as bad:
        return Unusable(
            f"the revocation at index {index} is complete, but its completion is not exported: {bad.message}",
            reason="FILE",
            hint=f"the broker keeps it; try again with: broker revoke show {index} --export FILE",
        )
    return None


def _taken(path: Path) -> Misused:
    return Misused(f"{path} is there already", hint="name a new file, or add --force to overwrite it")
