"""Small file systems of a test's own, that get full, read-only, or fail. Needs root."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# linux/fs.h, xfs_fs.h: shuts a file system down at once, without flushing; whatever is asked of it then fails with EIO.
FS_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NOLOGFLUSH = 2


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[Path]:
    """Mount a file system in memory on `folder`."""
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "none"):
        yield folder


def new_image(image: Path) -> Path:
    """Make an ext4 file system in a file."""
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-e", "remount-ro", image], check=True, capture_output=True)
    return image


def repair(image: Path) -> None:
    """Do what a machine does with a file system that was not unmounted well."""
    done = subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True)
    assert done.returncode in (0, 1), done.stdout


@contextmanager
def failing_disk(folder: Path, image: Path) -> Iterator[Path]:
    """Mount an ext4 file system on `folder`, for `fail` or `make_read_only`."""
    with _mounted(folder, "-o", "loop", image):
        yield folder


def fail(folder: Path) -> None:
    """Make every write and fsync from now on fail with EIO."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NOLOGFLUSH))
    finally:
        os.close(handle)


def make_read_only(folder: Path) -> None:
    """Make the kernel find an error, upon which it turns the file system read-only, files that are open included."""
    found = subprocess.run(["findmnt", "-no", "SOURCE", folder], check=True, capture_output=True, text=True)
    Path(f"/sys/fs/ext4/{Path(found.stdout.strip()).name}/trigger_fs_error").write_text("1")


def fill(folder: Path, *, leave_bytes: int = 0) -> Path:
    """Fill the disk but for so much; return the file, to be removed."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    with ballast.open("wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - leave_bytes))
    return ballast


@contextmanager
def _mounted(folder: Path, *what: str | Path) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *what, folder], check=True, capture_output=True)
    try:
        yield
    finally:
        done = subprocess.run(["umount", folder], check=False, capture_output=True)
        if done.returncode != 0:
            # A failed test may still have files open; the mount must go all the same.
            subprocess.run(["umount", "-l", folder], check=True, capture_output=True)
