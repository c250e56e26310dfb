"""Four image domains that need no download, 32x32 RGB, each with a held-out test split.

* `digits`: scikit-learn's handwritten digits; class = digit.
* `glyphs`: capital letters in the fonts that ship with matplotlib, in random colours, sizes and
  angles; class = letter. The fonts of the test split do not occur in training.
* `textures`: crops of photographs that ship with scikit-image; class = photograph. Every
  photograph is cut into tiles; a crop never leaves its tile, and every third tile is for testing.
* `shapes`: filled shapes on patches of scikit-learn's two photographs; class = shape. The
  patches under the test split are from the right third of the photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_image

SIZE = 32
"""Height and width of every image."""
TILE = 96
"""Height and width of the tiles of a photograph."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# fmt: off
TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmti10", "cmss10", "cmmi10",
)
TEST_FONTS = (
    "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralItalic", "cmb10", "cmtt10",
)
PHOTOGRAPHS = (
    "brick", "grass", "gravel", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry",
    "retina", "page", "coins",
)
# fmt: on
SHAPES = ("circle", "ring", "triangle", "square", "pentagon", "star", "cross", "crescent")

Pixels = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Images float32 (count, 3, 32, 32), standardised, and their classes int64 (count,)."""

    x: Pixels
    y: Labels


@dataclass(frozen=True, eq=False)
class ImageDomain:
    """One task: its class names and its two splits."""

    labels: tuple[str, ...]
    train: Split
    test: Split


def load_domains(train: int, test: int, seed: int) -> dict[str, ImageDomain]:
    """Makes all domains.

    Args:
        train: Training images of each domain; digits has at most 1297.
        test: Test images of each domain; digits has at most 500.
        seed: Same seed, same pixels.
    """
    makers: dict[str, Callable[[int, int, np.random.Generator], ImageDomain]] = {
        "digits": digits,
        "glyphs": glyphs,
        "textures": textures,
        "shapes": shapes,
    }
    seeds = np.random.SeedSequence(seed).spawn(len(makers))
    return {
        name: make(train, test, np.random.default_rng(own))
        for (name, make), own in zip(makers.items(), seeds, strict=True)
    }


def digits(train: int, test: int, rng: np.random.Generator) -> ImageDomain:
    """Handwritten digits of 8x8 pixels, enlarged."""
    source = load_digits()
    order = rng.permutation(len(source.target))
    # The test images are always the same share of the whole, however few are asked for.
    parts = {"test": order[:500][:test], "train": order[500:][:train]}

    def split(chosen: NDArray[np.intp]) -> Split:
        images = [enlarged(source.images[index] * (255 / 16)) for index in chosen]
        return standardised(images, source.target[chosen])

    names = tuple(str(digit) for digit in range(10))
    return ImageDomain(names, split(parts["train"]), split(parts["test"]))


def enlarged(image: NDArray[np.float64]) -> Image.Image:
    """Enlarges a grey image to the common size."""
    return Image.fromarray(image.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def glyphs(train: int, test: int, rng: np.random.Generator) -> ImageDomain:
    """Letters; training and test have no font in common."""

    def split(count: int, names: tuple[str, ...]) -> Split:
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        fonts = [
            ImageFont.truetype(folder / f"{name}.ttf", size) for name in names for size in (20, 26)
        ]
        classes = rng.integers(len(LETTERS), size=count)
        return standardised([glyph(LETTERS[c], fonts, rng) for c in classes], classes)

    return ImageDomain(tuple(LETTERS), split(train, TRAIN_FONTS), split(test, TEST_FONTS))


def glyph(letter: str, fonts: list[Any], rng: np.random.Generator) -> Image.Image:
    """Draws a letter near the middle, in two colours that can be told apart."""
    stencil = Image.new("L", (SIZE, SIZE))
    middle = tuple(SIZE / 2 + rng.uniform(-2, 2, 2))
    font = fonts[rng.integers(len(fonts))]
    ImageDraw.Draw(stencil).text(middle, letter, 255, font, anchor="mm")
    stencil = stencil.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    dark, light = colour(0, 110, rng), colour(145, 256, rng)
    ink, paper = (dark, light) if rng.random() < 0.5 else (light, dark)
    return Image.composite(
        Image.new("RGB", stencil.size, ink), Image.new("RGB", stencil.size, paper), stencil
    )


def colour(low: int, high: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draws a colour with every part in [low, high)."""
    return tuple(int(part) for part in rng.integers(low, high, 3))


def textures(train: int, test: int, rng: np.random.Generator) -> ImageDomain:
    """Crops of 48x48 pixels, halved by a third; training and test tiles are disjoint."""
    tiles = [tiles_of(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]

    def split(count: int, testing: bool) -> Split:
        classes = rng.integers(len(PHOTOGRAPHS), size=count)
        images = []
        for photograph in classes:
            own = [t for i, t in enumerate(tiles[photograph]) if (i % 3 == 2) == testing]
            images.append(crop(own[rng.integers(len(own))], 48, rng))
        return standardised(images, classes)

    return ImageDomain(PHOTOGRAPHS, split(train, False), split(test, True))


def tiles_of(photograph: NDArray[np.uint8]) -> list[Image.Image]:
    """Cuts a photograph into whole tiles, row by row."""
    image = Image.fromarray(photograph).convert("RGB")
    return [
        image.crop((left, top, left + TILE, top + TILE))
        for top in range(0, image.height - TILE + 1, TILE)
        for left in range(0, image.width - TILE + 1, TILE)
    ]


def crop(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Cuts a random square and brings it to the common size."""
    left = int(rng.integers(image.width - side + 1))
    top = int(rng.integers(image.height - side + 1))
    box = (left, top, left + side, top + side)
    return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)


def shapes(train: int, test: int, rng: np.random.Generator) -> ImageDomain:
    """Shapes; the photographs behind training and test images are different regions."""
    photographs = [Image.fromarray(load_sample_image(f"{n}.jpg")) for n in ("china", "flower")]

    def split(count: int, left: float, right: float) -> Split:
        regions = [p.crop((int(left * p.width), 0, int(right * p.width), p.height))
                   for p in photographs]  # fmt: skip
        classes = rng.integers(len(SHAPES), size=count)
        return standardised([shape(SHAPES[c], regions, rng) for c in classes], classes)

    return ImageDomain(SHAPES, split(train, 0, 2 / 3), split(test, 2 / 3, 1))


def shape(name: str, backgrounds: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Draws one shape of random place, size, angle and colour on a patch of a photograph."""
    image = crop(backgrounds[rng.integers(len(backgrounds))], 64, rng)
    scale = 4
    radius = rng.uniform(7, 12) * scale
    middle = (SIZE / 2 + rng.uniform(-4, 4, 2)) * scale
    stencil = Image.new("L", (SIZE * scale, SIZE * scale))
    draw_shape(ImageDraw.Draw(stencil), name, middle, radius, rng.uniform(0, 2 * math.pi))
    stencil = stencil.resize((SIZE, SIZE), Image.Resampling.BOX)
    image.paste(colour(0, 256, rng), (0, 0), stencil)
    return image


def draw_shape(
    draw: Any, name: str, middle: NDArray[np.float64], radius: float, angle: float
) -> None:
    """Fills a shape with 255 around `middle`."""
    x, y = middle
    if name in ("circle", "ring", "crescent"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
        inner = {"circle": 0.0, "ring": 0.55, "crescent": 0.85}[name] * radius
        if name == "crescent":
            x, y = x + radius / 2 * math.cos(angle), y + radius / 2 * math.sin(angle)
        if inner:
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), 0)
        return
    corners = {
        "triangle": [1.0] * 3,
        "square": [1.0] * 4,
        "pentagon": [1.0] * 5,
        "star": [1.0, 0.4] * 5,
        "cross": [1.0, 1.0, 0.38] * 4,
    }[name]
    turns = np.arange(len(corners)) / len(corners)
    if name == "cross":
        # Two corners for each arm's end, one where two arms meet.
        turns = np.array(
            [turn + side for turn in (0, 0.25, 0.5, 0.75) for side in (0, 0.085, 0.1675)]
        )
    directions = angle + 2 * math.pi * turns
    rims = radius * np.array(corners)
    points = [
        (x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(rims, directions, strict=True)
    ]
    draw.polygon(points, 255)


def standardised(images: list[Image.Image], classes: NDArray[Any]) -> Split:
    """Brings each image to mean 0 and standard deviation 1 over its pixels and colours."""
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    pixels = pixels.transpose(0, 3, 1, 2)
    mean = pixels.mean((1, 2, 3), keepdims=True)
    deviation = pixels.std((1, 2, 3), keepdims=True)
    return Split(np.ascontiguousarray((pixels - mean) / (deviation + 1)), classes.astype(np.int64))
