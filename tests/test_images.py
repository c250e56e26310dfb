"""Images and arrays become what a network takes, or a message that says why not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdprune_deploy.errors import InputError, UsageError
from mdprune_deploy.images import read_input
from mdprune_deploy.manifest import TensorSpec

RGB = TensorSpec("x", (None, 3, 4, 6), "float32")
GREY = TensorSpec("x", (1, 1, 4, 6), "float32")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def png(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)  # type: ignore[arg-type]
    return path


def test_an_image_of_the_right_size_is_only_scaled(tmp_path: Path) -> None:
    x = read_input(png(tmp_path / "x.png", PIXELS), RGB)
    assert x.dtype == np.float32 and x.flags.c_contiguous
    np.testing.assert_array_equal(x[0], PIXELS.transpose(2, 0, 1).astype(np.float32) / 255)


def test_mean_and_std_per_channel_or_for_all(tmp_path: Path) -> None:
    path = png(tmp_path / "x.png", PIXELS)
    plain = read_input(path, RGB)[0]
    x = read_input(path, RGB, [0.5, 0.25, 0.125], [0.5])[0]
    # Two float32 operations: within two units of the last place of values up to 2.
    mean = np.array([0.5, 0.25, 0.125], np.float32)[:, None, None]
    np.testing.assert_allclose(x, (plain - mean) * 2, atol=5e-7)


def test_another_size_is_resized_and_keeps_the_mean(tmp_path: Path) -> None:
    flat = np.zeros((40, 80, 3), np.uint8)
    flat[:, :40] = (10, 20, 30)
    flat[:, 40:] = (110, 120, 130)
    x = read_input(png(tmp_path / "x.png", flat), RGB)
    assert x.shape == (1, 3, 4, 6)
    # Halves of one colour stay so away from the edge between them.
    np.testing.assert_allclose(x[0, :, :, 0].T * 255, [(10, 20, 30)] * 4, atol=1e-3)
    np.testing.assert_allclose(x[0, :, :, -1].T * 255, [(110, 120, 130)] * 4, atol=1e-3)


def test_grey_palette_and_transparency(tmp_path: Path) -> None:
    x = read_input(png(tmp_path / "x.png", PIXELS, "L"), GREY)
    assert x.shape == (1, 1, 4, 6)
    spread = read_input(tmp_path / "x.png", RGB)
    assert all(np.array_equal(spread[0, channel], x[0, 0]) for channel in range(3))
    clear = read_input(png(tmp_path / "a.png", PIXELS, "RGBA"), RGB)
    assert np.array_equal(clear, read_input(png(tmp_path / "b.png", PIXELS), RGB))


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = read_input(png(tmp_path / "x.png", PIXELS, exif=exif), RGB)
    upright = read_input(png(tmp_path / "y.png", PIXELS), RGB)
    np.testing.assert_array_equal(turned, upright[:, :, ::-1, ::-1])


def test_a_free_size_is_the_images(tmp_path: Path) -> None:
    free = TensorSpec("x", (None, 3, None, None), "float32")
    assert read_input(png(tmp_path / "x.png", PIXELS), free).shape == (1, 3, 4, 6)


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", (1, 3, 4, 6), "int64"),
        TensorSpec("x", (1, 2, 4, 6), "float32"),
        TensorSpec("x", (1, 24), "float32"),
        TensorSpec("x", (1, None, 4, 6), "float32"),
    ],
)
def test_a_network_that_takes_no_image(tmp_path: Path, spec: TensorSpec) -> None:
    with pytest.raises(UsageError, match=r"which is no image; give a \.npy file"):
        read_input(png(tmp_path / "x.png", PIXELS), spec)


@pytest.mark.parametrize(("mean", "std"), [([1, 2], []), ([], [1, 2]), ([float("nan")], [])])
def test_numbers_that_do_not_fit(tmp_path: Path, mean: list[float], std: list[float]) -> None:
    with pytest.raises(UsageError, match="needs one finite number or 3"):
        read_input(png(tmp_path / "x.png", PIXELS), RGB, mean, std)


def test_a_std_of_zero(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--std holds a number that is not above 0"):
        read_input(png(tmp_path / "x.png", PIXELS), RGB, [], [1, 0, 1])


def test_damaged_and_foreign_images(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        data, "PNG"
    )
    (tmp_path / "cut.png").write_bytes(data.getvalue()[:5000])
    with pytest.raises(InputError, match=r"cut\.png: "):
        read_input(tmp_path / "cut.png", RGB)
    Image.fromarray(PIXELS).save(tmp_path / "x.gif")
    with pytest.raises(InputError, match="neither a PNG or JPEG image"):
        read_input(tmp_path / "x.gif", RGB)


def test_floating_point_arrays_are_cast_and_others_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 3), np.float64))
    assert read_input(tmp_path / "x.npy", TensorSpec("x", (1, 3), "float32")).dtype == np.float32
    np.save(tmp_path / "y.npy", np.ones((1, 3), np.int32))
    assert read_input(tmp_path / "y.npy", TensorSpec("x", (1, 3), "float32")).dtype == np.int32


def test_an_archive_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(1))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(InputError, match="an archive of several"):
        read_input(tmp_path / "x.npy", RGB)
