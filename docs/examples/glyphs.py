"""The task of the vision demo: letters of fonts, drawn turned, bent, faint and behind noise, as many as wanted.

Which letter is it? The fonts come with matplotlib. Training takes DejaVu, the choice of settings Computer Modern, and
the test STIX: no two splits share a font, so none shares an image.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LETTERS = string.ascii_uppercase
FONTS = {
    "train": tuple(
        f"DejaVu{name}"
        for name in (
            *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
            *("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique"),
            *("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic"),
        )
    ),
    "validation": ("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
    "test": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
SIDE = 42  # pixels: nine patches of 14
FINE = 2  # a letter is drawn this much larger, and then made smaller together with its turn
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained
TURN, BEND, SHIFT = 15.0, 0.15, 0.06  # degrees, shear, share of the side: each to both sides
SIZES = (0.55, 0.85)  # height of the font, share of the side
CONTRASTS = (0.6, 1.0)  # between letter and ground, of 1
NOISE, STROKES = 0.05, 1  # standard deviation; at most so many lines across the letter


@dataclass(frozen=True)
class Glyphs:
    """Images (image, colour, row, column), normalized, and the number of the letter on each."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def first(self, count: int) -> Glyphs:
        """Return the first images, all if there are fewer."""
        return Glyphs(self.images[:count], self.labels[:count])


@lru_cache(64)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font that matplotlib brings."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def draw(letter: str, name: str, rng: random.Random) -> np.ndarray:
    """Draw a letter in light and dark: an array (row, column) of grey from 0 to 1."""
    side = FINE * SIDE
    ink = Image.new("L", (side, side))
    shape = font(name, round(side * rng.uniform(*SIZES)))
    left, top, right, bottom = shape.getbbox(letter)
    ImageDraw.Draw(ink).text(((side - left - right) / 2, (side - top - bottom) / 2), letter, 255, shape)
    ink = ink.rotate(rng.uniform(-TURN, TURN), Image.Resampling.BILINEAR)
    bend, middle = rng.uniform(-BEND, BEND), side / 2
    across, down = (side * rng.uniform(-SHIFT, SHIFT) for _ in range(2))
    moved = (1, bend, across - bend * middle, 0, 1, down)
    ink = ink.transform((side, side), Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(ink)
    for _ in range(rng.randint(0, STROKES)):
        ends = [rng.uniform(0, side) for _ in range(4)]
        pen.line(ends, rng.choice((0, 255)), rng.randint(1, 2 * FINE))
    grey = np.asarray(ink.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32) / 255
    contrast = rng.uniform(*CONTRASTS) * rng.choice((-1, 1))
    ground = rng.uniform(max(0.0, -contrast), min(1.0, 1.0 - contrast))
    return ground + contrast * grey


def make(split: str, count: int, seed: int) -> Glyphs:
    """Make `count` images of a split; those of another seed are others."""
    if split not in FONTS:
        raise ValueError(f"expected a split among {', '.join(FONTS)}, got {split!r}")
    rng = random.Random(f"{split} {seed}")
    noise = np.random.default_rng([list(FONTS).index(split), seed])
    labels = [rng.randrange(len(LETTERS)) for _ in range(count)]
    grey = np.stack([draw(LETTERS[label], rng.choice(FONTS[split]), rng) for label in labels])
    colours = grey[:, None] + noise.normal(0.0, NOISE, (count, 3, SIDE, SIDE)).astype(np.float32)
    images = torch.from_numpy(colours).clamp(0, 1)
    mean, deviation = (torch.tensor(one).reshape(3, 1, 1) for one in (MEAN, DEVIATION))
    return Glyphs((images - mean) / deviation, torch.tensor(labels))
