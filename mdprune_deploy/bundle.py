"""The bundle directory: written whole or not at all, read with nothing taken on trust.

A bundle is built in a hidden sibling of the place where it will stand, written through to the disk
and renamed. A bundle that it replaces is renamed away first and removed last: a reader sees the old
one, for an instant none, then the new one, never a mixture. `docs/bundle-format.md` specifies the
format.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mdprune_deploy import manifest as manifests
from mdprune_deploy.errors import BundleError, UsageError
from mdprune_deploy.manifest import DomainModel, FileEntry, Manifest
from mdprune_deploy.report import CompileReport

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was checked.

    Attributes:
        root: The directory.
        manifest: What it holds.
    """

    root: Path
    manifest: Manifest

    def check_hashes(self) -> None:
        """Compares every file with its sha256.

        Raises:
            BundleError: A file differs from what the manifest says, or cannot be read.
        """
        for path, entry in self.manifest.files.items():
            try:
                found = _file_entry(self.root / path)
            except OSError as error:
                raise BundleError(f"{self.root / path}: {error.strerror}") from error
            if found != entry:
                raise BundleError(
                    f"{self.root / path}: sha256 is {found.sha256}, {manifests.NAME} says "
                    f"{entry.sha256}: the file was changed or damaged"
                )


def read_bundle(path: str | Path) -> Bundle:
    """Reads a bundle's manifest and checks that every file is there with its size.

    The contents of the files are not read: `Bundle.check_hashes` does that.

    Args:
        path: The bundle directory.

    Raises:
        BundleError: There is no bundle, it is of another version, its manifest is wrong, or a file
            is missing, of another size, or no plain file.
    """
    root = Path(path)
    manifest_path = root / manifests.NAME
    try:
        with manifest_path.open("rb") as file:
            data = file.read(manifests.MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{root} is not a bundle: {manifest_path}: {error.strerror}") from error
    if len(data) > manifests.MAX_BYTES:
        raise BundleError(f"{manifest_path} is larger than {manifests.MAX_BYTES} bytes")
    try:
        manifest = manifests.parse(data.decode())
    except (BundleError, UnicodeDecodeError) as error:
        raise BundleError(f"{root}: {error}") from error
    for name, entry in manifest.files.items():
        _check_file(root, name, entry.size)
    return Bundle(root, manifest)


def _check_file(root: Path, name: str, size: int) -> None:
    try:
        found = (root / name).lstat()
        inside = (root / name).parent.resolve().is_relative_to(root.resolve())
    except OSError as error:
        raise BundleError(f"{root}: {name}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode) or not inside:
        raise BundleError(f"{root}: {name} is not a plain file inside the bundle")
    if found.st_size != size:
        raise BundleError(f"{root}: {name} has {found.st_size} bytes, expected {size}")


class BundleWriter:
    """Builds a bundle next to its place and moves it there when it is finished.

    Use it as a context manager and write below `root`. Leaving the block without `finish`, by an
    error or an interrupt, removes everything; an `OSError` about the output becomes a
    `UsageError` with the system's reason.

    Args:
        output_dir: Where the bundle will stand; its parent must exist.
        overwrite: Replace a bundle that stands there. Anything else is never removed.

    Raises:
        UsageError: The place is taken, is no place for a directory, or cannot be written.
    """

    def __init__(self, output_dir: str | Path, overwrite: bool = False) -> None:
        self._output = Path(output_dir).resolve()
        self._overwrite = overwrite
        name = f".{self._output.name}.{secrets.token_hex(4)}"
        self.root = self._output.with_name(f"{name}.partial")
        self._replaced = self._output.with_name(f"{name}.replaced")

    def __enter__(self) -> BundleWriter:
        self._check_place()
        # An interrupt between here and the block would leave the directory: `__exit__` is not
        # called for it.
        atexit.register(self._discard)
        try:
            self.root.mkdir()
        except OSError as error:
            atexit.unregister(self._discard)
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discard()
        atexit.unregister(self._discard)
        if isinstance(error, OSError) and self._is_ours(error):
            raise self._unwritable(error) from error

    def _discard(self) -> None:
        if self._replaced.exists() and not self._output.exists():
            self._replaced.rename(self._output)
        for leftover in (self.root, self._replaced):
            shutil.rmtree(leftover, ignore_errors=True)

    def finish(
        self, report: CompileReport, models: Mapping[str, DomainModel], versions: Mapping[str, str]
    ) -> None:
        """Writes the manifest and puts the bundle in its place.

        Args:
            report: The figures; the wall time is not recorded.
            models: Per domain of the report what runs it, paths relative to `root`.
            versions: Versions of what made the bundle.

        Raises:
            OSError: The disk refuses; leaving the block makes it a `UsageError`.
            UsageError: Something else has come to stand at the output path.
        """
        files = {path.relative_to(self.root).as_posix(): path for path in _files(self.root)}
        entries = {name: _file_entry(path) for name, path in files.items()}
        manifest = Manifest(report, dict(models), dict(versions), entries)
        text = manifest.to_text()
        manifests.parse(text)
        (self.root / manifests.NAME).write_text(text, encoding="utf-8")
        for path in _files(self.root):
            _sync(path)
        for directory, _, _ in os.walk(self.root):
            _sync(Path(directory))
        self._move_into_place()
        _sync(self._output.parent)

    def _check_place(self) -> None:
        parent = self._output.parent
        if not parent.is_dir():
            raise UsageError(f"cannot write {self._output}: {parent} is not a directory")
        if not self._output.exists():
            return
        if not self._overwrite:
            raise UsageError(f"{self._output} exists; --force replaces a bundle")
        foreign = _foreign(self._output)
        if foreign is not None:
            raise UsageError(f"{self._output} is not replaced: {foreign}")

    def _move_into_place(self) -> None:
        self._check_place()
        if not self._output.exists():
            self.root.rename(self._output)
            return
        self._output.rename(self._replaced)
        self.root.rename(self._output)

    def _is_ours(self, error: OSError) -> bool:
        if not isinstance(error.filename, str):
            return error.errno in _DISK_ERRORS
        path = Path(error.filename)
        return any(path.is_relative_to(p) for p in (self.root, self._output, self._replaced))

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(f"cannot write {self._output}: {error.strerror or error}")


def _foreign(directory: Path) -> str | None:
    """Says what in a directory is not of a bundle, or None if all of it may be removed."""
    if not directory.is_dir():
        return "it is not a directory"
    present = {
        path.relative_to(directory).as_posix()
        for path in _files(directory)
        if not _is_tilings(path, directory)
    }
    if not present:
        return None
    try:
        tree = json.loads((directory / manifests.NAME).read_text(encoding="utf-8"))
        marked = tree["format"] == manifests.FORMAT
        listed = {manifests.NAME, *tree["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        marked, listed = False, set()
    if not marked:
        return f"it has no {manifests.NAME} of an mdprune bundle"
    extra = min(present - listed, default=None)
    return None if extra is None else f"it holds {extra!r}, which is not part of the bundle"


def _is_tilings(path: Path, directory: Path) -> bool:
    """Says whether the native runtime may have written a file: what it measured on a GPU."""
    return path.parent == directory / "native" and path.suffix == ".tilings"


def _files(directory: Path) -> Iterator[Path]:
    """Everything below a directory that is not a directory itself, in a fixed order."""
    return (path for path in sorted(directory.rglob("*")) if path.is_symlink() or not path.is_dir())


def _file_entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(file.tell(), digest)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
