"""Pictures for dark pages: white turns to the page's ground and ink to light, colours stay."""

import re
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

_GROUND, _LIGHT = 0x12, 0xE6
_NEAR, _SMALLEST = 20.0, 800
_IMAGE = re.compile(r'<img (?P<rest>[^>]*?)src="(?P<folder>[^"]*_images/)(?P<name>[^"/]+\.png)"')


def with_dark_pictures(body: str) -> str:
    """A page's text, each picture followed by its dark twin; the theme shows one of them."""

    def both(tag: re.Match) -> str:
        rest, folder, name = tag["rest"], tag["folder"], tag["name"]
        twin = f'<img class="only-dark" {rest}src="{folder}dark/{name}" loading="lazy" />'
        return f'{twin}<img class="only-light" {rest}src="{folder}{name}"'

    return _IMAGE.sub(both, body)


def write_dark_pictures(folder: Path) -> None:
    """Writes the twins of a folder's pictures into ``dark`` below it."""
    (folder / "dark").mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        twin = folder / "dark" / path.name
        if not twin.exists() or twin.stat().st_mtime < path.stat().st_mtime:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            picture = Image.fromarray(darkened(pixels)).quantize(160, dither=Image.Dither.NONE)
            picture.save(twin, optimize=True)


def darkened(pixels: np.ndarray) -> np.ndarray:
    """``[H, W, 3]`` bytes: white and black change places, the hues between them stay.

    A pixel is a mixture of white, black and one pure hue, and so are the rims of lines. Maps of
    viridis are left alone, with what is written in them: their order is that of lightness.
    """
    rgb = pixels.astype(float)
    white, most = rgb.min(-1, keepdims=True), rgb.max(-1, keepdims=True)
    black, hue = 255 - most, rgb - white
    # The black in a colour makes it half as light as ink, or green would be neon.
    light = _LIGHT * (1 - (most - white) / 510)
    dark = hue + (white * _GROUND + black * light) / 255
    found = np.where(_in_maps(rgb)[..., None], rgb, dark)
    return np.clip(found, 0, 255).round().astype(np.uint8)


def _in_maps(rgb: np.ndarray) -> np.ndarray:
    """Where large areas, and the boxes around them, have colours of viridis."""
    colors = 255 * matplotlib.colormaps["viridis"](np.linspace(0, 1, 128))[:, :3]
    codes = rgb.astype(int) @ [1 << 16, 1 << 8, 1]
    kinds, which = np.unique(codes, return_inverse=True)
    kinds = np.stack([kinds >> 16, (kinds >> 8) & 255, kinds & 255], -1)
    seen = (cKDTree(colors).query(kinds)[0] < _NEAR)[which].reshape(codes.shape)
    labels, _ = ndimage.label(ndimage.binary_opening(seen, iterations=3))
    inside = np.zeros_like(seen)
    areas = np.bincount(labels.ravel())[1:]
    for area, box in zip(areas, ndimage.find_objects(labels), strict=True):
        if area > _SMALLEST:
            inside[box] = True
    # The rims that opening took away.
    return ndimage.binary_dilation(inside, iterations=3) & (seen | inside)
