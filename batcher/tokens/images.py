"""What an image costs in tokens, by OpenAI's formulas, from its size in pixels.

Sources: the guide "Images and vision", sections "Model sizing behavior" and "Calculating costs", in its
revision of 2026-09; for models that it no longer sizes or lists (gpt-5-mini and -nano, gpt-4.1-nano, o4-mini,
gpt-4.5, computer-use-preview) the last revision that did, of spring 2026. Two ways to count:

    patches: fit into the detail level's limits, then ceil(ceil(w/32) x ceil(h/32) x multiplier)
    tiles:   fit into 2048 x 2048, then the shorter side into 768; base + tile x ceil(w/512) x ceil(h/512)

The size is read from the first bytes of a `data:` URL. Of an image that is elsewhere, or that can't be read,
it is not known, and the most that an image can cost is charged.
"""

import struct
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import partial
from math import sqrt
from typing import Final, NamedTuple, TypeAlias


class _Fit(NamedTuple):
    """The limits of a detail level. A larger image is scaled down, never up."""

    #: The longer side, in pixels.
    side: int
    #: Of 32 x 32 pixels, before the multiplier.
    patches: int


class _Patches(NamedTuple):
    """A model that sees patches."""

    #: The multiplier, times 100.
    percent: int
    #: Detail -> its limits; `auto` is what holds without a detail, too.
    fits: Mapping[str, _Fit]


class _Tiles(NamedTuple):
    """A model that sees tiles of 512 x 512 pixels. `low` costs the base alone, whatever the size."""

    base: int
    tile: int


_Rule: TypeAlias = _Patches | _Tiles

_LOW: Final = _Fit(512, 256)
_HIGH: Final = _Fit(2048, 2_500)
_ORIGINAL: Final = _Fit(6_000, 10_000)
#: These have no budget; an image of more patches is refused.
_AS_IT_IS: Final = _Fit(65_535, 30_000)
_ALL_LEVELS: Final = _Fit(2048, 6_144)
_ALL_LEVELS_BEFORE: Final = _Fit(2048, 1_536)

#: A new model, or a deployment or a server's model by a name of its own: counted as by the newest family
#: (gpt-6). Other makers' models are near it: Qwen2.5-VL counts patches of 28 pixels without a multiplier.
_UNKNOWN: Final = _Patches(
    120, {"low": _LOW, "high": _Fit(65_535, 2_500), "original": _AS_IT_IS, "auto": _AS_IT_IS}
)

_RULES: Final[Mapping[str, _Rule]] = {
    "gpt-5.6": _Patches(120, {"low": _LOW, "high": _HIGH, "original": _AS_IT_IS, "auto": _AS_IT_IS}),
    "gpt-5.5": _Patches(120, {"low": _LOW, "high": _HIGH, "original": _ORIGINAL, "auto": _ORIGINAL}),
    # Its `low` is the larger one: the guide says so.
    "gpt-5.4": _Patches(120, {"low": _ALL_LEVELS, "high": _HIGH, "original": _ORIGINAL, "auto": _HIGH}),
    "gpt-5.3": _Patches(120, {"auto": _ALL_LEVELS}),
    "gpt-5.2": _Patches(120, {"auto": _ALL_LEVELS}),
    "gpt-5.1": _Tiles(70, 140),
    "gpt-5.1-codex-mini": _Patches(120, {"auto": _ALL_LEVELS_BEFORE}),
    "gpt-5": _Tiles(70, 140),
    "gpt-5-codex-mini": _Patches(120, {"auto": _ALL_LEVELS_BEFORE}),
    "gpt-5-mini": _Patches(120, {"auto": _ALL_LEVELS_BEFORE}),
    "gpt-5-nano": _Patches(150, {"auto": _ALL_LEVELS_BEFORE}),
    "gpt-4.5": _Tiles(85, 170),
    "gpt-4.1": _Tiles(85, 170),
    "gpt-4.1-mini": _Patches(162, {"auto": _ALL_LEVELS}),
    "gpt-4.1-nano": _Patches(246, {"auto": _ALL_LEVELS_BEFORE}),
    "gpt-4o": _Tiles(85, 170),
    "gpt-4o-mini": _Tiles(2833, 5667),
    "chatgpt-4o": _Tiles(85, 170),
    "gpt-4": _Tiles(85, 170),
    "o4-mini": _Patches(172, {"auto": _ALL_LEVELS_BEFORE}),
    "o3": _Tiles(75, 150),
    "o1": _Tiles(75, 150),
    "computer-use-preview": _Tiles(65, 129),
}

_PATCH_PX: Final = 32
_TILE_PX: Final = 512
#: Of a picture of 2048 x 768.
_MOST_TILES: Final = 8
#: What an image of unknown size is taken for where no budget holds: 10 megapixels, the largest budget of the
#: models that have one. At what is only just not refused, three times that, one link would fill many a limit.
_UNSEEN_PATCHES: Final = 10_000

#: JPEG segments to look through for the one with the size: a colour profile takes up to 255.
_MOST_SEGMENTS: Final = 300
#: Start of frame, in all its kinds; C4, C8 and CC are other things.
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LONGEST_MEDIA_TYPE: Final = 200

#: (offset, count) -> bytes of the image; fewer where it ends.
_Read: TypeAlias = Callable[[int, int], bytes]


def image_tokens(model: object, detail: object, url: object) -> int:
    """Return what one image costs, in tokens.

    Args:
        model: as in the request; a date or another suffix, and what a fine-tuned model has around its name,
            don't matter.
        detail: `low`, `high`, `original` or `auto`; anything else is `auto`.
        url: a `data:` URL that holds the image, or wherever it is.
    """
    rule, size = _rule(model), image_size(url)
    if isinstance(rule, _Tiles):
        if detail == "low":
            return rule.base
        return rule.base + rule.tile * (_MOST_TILES if size is None else _tiles(*size))
    auto = rule.fits["auto"]
    fit = rule.fits.get(detail, auto) if isinstance(detail, str) else auto
    patches = _most_patches(fit) if size is None else _patches(*size, fit)
    return _ceil_div(patches * rule.percent, 100)


def _rule(model: object) -> _Rule:
    """Find the longest name that the model's begins with, by its hyphens."""
    name = model.removeprefix("ft:").partition(":")[0].rpartition("/")[2] if isinstance(model, str) else ""
    while name:
        if name in _RULES:
            return _RULES[name]
        name = name.rpartition("-")[0]
    return _UNKNOWN


def _tiles(width: int, height: int) -> int:
    width, height = _within(width, height, 2048)
    if (shorter := min(width, height)) > 768:
        width, height = width * 768 // shorter, height * 768 // shorter
    return _ceil_div(width, _TILE_PX) * _ceil_div(height, _TILE_PX)


def _patches(width: int, height: int, fit: _Fit) -> int:
    width, height = _within(width, height, fit.side)
    patches = _cover(width, height)
    if patches <= fit.patches:
        return patches
    # Shrink to the budget's area, and then to whole patches along the side that comes out worse.
    shrink = sqrt(fit.patches * _PATCH_PX**2 / (width * height))
    across, down = width * shrink / _PATCH_PX, height * shrink / _PATCH_PX
    shrink *= min(int(across) / across, int(down) / down)
    return min(_cover(int(width * shrink), int(height * shrink)), fit.patches)


def _most_patches(fit: _Fit) -> int:
    return min(_cover(fit.side, fit.side), fit.patches, _UNSEEN_PATCHES)


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    """Scale an image down until its longer side is no longer than `side`, to the nearest whole pixels."""
    longer = max(width, height)
    if longer <= side:
        return width, height
    return max(round(width * side / longer), 1), max(round(height * side / longer), 1)


def _cover(width: int, height: int) -> int:
    return _ceil_div(width, _PATCH_PX) * _ceil_div(height, _PATCH_PX)


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)


def image_size(url: object) -> tuple[int, int] | None:
    """Read width and height in pixels from a base64 `data:` URL of a PNG, JPEG, GIF or WebP file.

    Only the few bytes that say so are decoded, however long the URL is. None for anything else.
    """
    if not isinstance(url, str) or not url.startswith("data:"):
        return None
    comma = url.find(",", 0, _LONGEST_MEDIA_TYPE)
    if comma < 0 or not url[:comma].endswith(";base64"):
        return None
    try:
        size = _size(partial(_decode, url, comma + 1))
    except (ValueError, struct.error):
        return None
    return size if size is not None and min(size) > 0 else None


def _decode(url: str, start: int, offset: int, count: int) -> bytes:
    """Decode `count` bytes at `offset`; four characters make three bytes."""
    first, last = offset // 3, _ceil_div(offset + count, 3)
    return b64decode(url[start + first * 4 : start + last * 4])[offset - first * 3 :][:count]


def _size(read: _Read) -> tuple[int, int] | None:
    head = read(0, 30)
    width: int
    height: int
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", head, 16)
    elif head.startswith(b"GIF8"):
        width, height = struct.unpack_from("<HH", head, 6)
    elif head.startswith(b"\xff\xd8"):
        return _jpeg_size(read)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_size(head)
    else:
        return None
    return width, height


def _jpeg_size(read: _Read) -> tuple[int, int] | None:
    """Go from segment to segment until the one that begins the picture."""
    offset = 2
    for _ in range(_MOST_SEGMENTS):
        mark, kind, length, _bits, height, width = struct.unpack(">BBHBHH", read(offset, 9))
        if mark != 0xFF:
            return None
        if kind in _JPEG_FRAMES:
            return width, height
        # A second FF is padding: the kind comes later.
        offset += 1 if kind == 0xFF else 2 + length
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Read the size as each of the three kinds has it: lossy, lossless, and with more than a picture."""
    kind = head[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(head) == 30:
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None
