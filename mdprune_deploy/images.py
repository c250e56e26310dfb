"""Files that a network is run on: NumPy arrays and images.

An image becomes float32 of shape `(1, channels, height, width)`, the size that the network takes.
It is turned upright by its EXIF orientation, made grey or RGB by the number of channels, resized
without keeping the aspect ratio (bilinear, with antialiasing) and scaled, per channel,

    x = (pixel / 255 - mean) / std

with mean 0 and std 1 unless told otherwise, so that values lie in 0..1. Transparency is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .engines import Array
from .errors import InputError, UsageError
from .manifest import TensorSpec

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode by the network's number of channels."""
FORMATS = ("PNG", "JPEG")


def read_input(
    path: Path, spec: TensorSpec, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> Array:
    """Reads one input of a network.

    Args:
        path: `*.npy`, or a PNG or JPEG file.
        spec: What the network takes.
        mean: Per channel of an image; empty for 0.
        std: Per channel of an image; empty for 1.

    Returns:
        The array. Floating-point data of a `.npy` file is cast to the network's floating-point
        type; everything else is as stored.

    Raises:
        InputError: The file is unreadable or holds something else.
        UsageError: The network takes no image, or `mean` or `std` does not fit.
    """
    if path.suffix == ".npy":
        return _read_array(path, spec)
    return _read_image(path, spec, mean, std)


def _read_array(path: Path, spec: TensorSpec) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a NumPy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: not a NumPy array but an archive of several")
    if array.dtype.kind == np.dtype(spec.dtype).kind == "f":
        return array.astype(spec.dtype)
    return array


def _read_image(path: Path, spec: TensorSpec, mean: Sequence[float], std: Sequence[float]) -> Array:
    if np.dtype(spec.dtype) != np.float32 or len(spec.shape) != 4 or spec.shape[1] not in MODES:
        raise UsageError(
            f"{path}: input {spec.name!r} takes {spec.dtype} of {_text(spec)}, which is no image; "
            "give a .npy file"
        )
    _, channels, height, width = spec.shape
    assert channels is not None
    scale = _per_channel("--std", std, channels, 1.0)
    if not (scale > 0).all():
        raise UsageError("--std holds a number that is not above 0")
    shift = _per_channel("--mean", mean, channels, 0.0)
    try:
        with Image.open(path, formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image).convert(MODES[channels])
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: neither a PNG or JPEG image nor a .npy file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {reason}") from error
    size = (upright.width if width is None else width, upright.height if height is None else height)
    pixels = np.asarray(upright.resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255
    planes = pixels.reshape(size[1], size[0], channels).transpose(2, 0, 1)
    normal = (planes - shift[:, None, None]) / scale[:, None, None]
    return np.ascontiguousarray(normal[None], dtype=np.float32)


def _per_channel(option: str, values: Sequence[float], channels: int, default: float) -> Array:
    if not values:
        return np.full(channels, default, dtype=np.float32)
    if len(values) not in (1, channels) or not np.isfinite(values).all():
        raise UsageError(f"{option} needs one finite number or {channels}, one per channel")
    return np.broadcast_to(np.asarray(values, dtype=np.float32), (channels,))


def _text(spec: TensorSpec) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in spec.shape)})"
