"""Tensors by name from the files that researchers keep; reading them runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..errors import CheckpointError

Tensors = dict[str, torch.Tensor]


def read_state_dict(
    path: Path, key: str | None = None, prefix: str = "", what: str = "weights"
) -> Tensors:
    """Reads tensors by name from a `torch.save` or safetensors file, without running code.

    Args:
        path: The file.
        key: The entry that holds the state dict, if it is nested.
        prefix: Removed from the front of names that have it.
        what: What the file is called in messages.

    Raises:
        CheckpointError: The file is unreadable or holds more than tensors.
    """
    where = f"{what} {str(path)!r}"
    content = _read(path, where)
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise CheckpointError(f"{where}: there is no entry {key!r}")
        content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: holds a {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{where}: entry {name!r} is a {type(tensor).__name__}, not a tensor; if it holds "
                "the state dict, name it as the key"
            )
    named = {name.removeprefix(prefix): tensor.detach() for name, tensor in content.items()}
    if len(named) < len(content):
        raise CheckpointError(f"{where}: two tensors have one name without {prefix!r}")
    return named


def _read(path: Path, where: str) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:9] == b"{":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror}") from error
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{where}: is corrupt, or holds more than tensors, which is never loaded because it "
            f"could run code; save the state dict alone ({line})"
        ) from error
