"""The checkpoint's file: safetensors with one metadata entry; see `docs/checkpoint-format.md`.

This module knows the container: its beginning, the digest, and that it appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch

from .checkpoint_document import FORMAT, VERSION, Checkpoint, from_document, to_document
from .errors import CheckpointError, UsageError

_KEY = "mdprune"
_NO_DIGEST = "0" * 64


# Writing


def write(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint under a temporary name and renames it: it appears whole or not at all.

    Raises:
        UsageError: The file cannot be written.
    """
    document, tensors = to_document(checkpoint)
    text = _sealed(document, tensors)
    _write_whole(Path(path), safetensors.torch.save(tensors, metadata={_KEY: text}))


def _sealed(document: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    text = json.dumps({**document, "sha256": _NO_DIGEST}, separators=(",", ":"), allow_nan=False)
    return f'{text[:-66]}{_digest(text, tensors)}"}}'


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Digests all tensors and the JSON text, whose last member is a digest of 64 zeros."""
    digest = hashlib.sha256()
    for name in sorted(tensors, key=lambda name: name.encode()):
        tensor = tensors[name]
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(text.encode())
    return digest.hexdigest()


def _write_whole(path: Path, data: bytes) -> None:
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise UsageError(f"cannot write checkpoint {str(path)!r}: {error.strerror}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


# Reading


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint's container; nothing in it is run.

    Raises:
        CheckpointError: The file is not a whole, unaltered checkpoint of this version.
    """
    name = os.fspath(path)
    with _naming(name):
        _recognise(Path(name))
        text, tensors = _open(name)
        document = _parse(text)
        _check_version(document)
        _check_digest(text, tensors)
        return from_document(document, tensors)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Puts the file's name in front of every message."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path!r}: {error}") from error.__cause__


def _recognise(path: Path) -> None:
    """Tells a safetensors file from what users hold by mistake, before anything parses it."""
    try:
        if not path.is_file():
            raise CheckpointError("is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}") from error
    if head[8:9] == b"{":
        return
    if head.startswith(b"PK") or head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
        raise CheckpointError(
            "is a pickle as torch.save writes it, which is never loaded here because a pickle can "
            "run code; turn it into a checkpoint with `mdprune pack`"
        )
    raise CheckpointError("is not an mdprune checkpoint, or its beginning is lost")


def _open(path: str) -> tuple[str, dict[str, torch.Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if set(metadata) != {_KEY}:
                raise CheckpointError(
                    f"is a safetensors file without the one metadata entry {_KEY!r}; "
                    "plain state dicts become checkpoints with `mdprune pack`"
                )
            return metadata[_KEY], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"is truncated or corrupt: {error}") from error


def _parse(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its metadata is corrupt: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"metadata is a {type(document).__name__}, not a dict")
    return document


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{name!r} is given twice")
        fields[name] = value
    return fields


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _check_version(document: Mapping[str, Any]) -> None:
    if document.get("format") != FORMAT:
        raise CheckpointError(f"its metadata does not say that it is of the format {FORMAT!r}")
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise CheckpointError(f"has version {version!r}; this program reads version {VERSION}")


def _check_digest(text: str, tensors: Mapping[str, torch.Tensor]) -> None:
    blank = f'{text[:-66]}{_NO_DIGEST}"}}'
    if text != f'{text[:-66]}{_digest(blank, tensors)}"}}':
        raise CheckpointError("is corrupt: its content does not match its sha256")
