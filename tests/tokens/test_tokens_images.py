"""Images: what they cost by the published formulas, and their size from the first bytes."""

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.tokens.images import _RULES, image_size, image_tokens

LINK = "https://example.org/a.png"


def url(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(width, height):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x06\0\0\0" * 9


def gif(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(30)


def segment(kind, content):
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def jpeg(width, height, *before, frame=0xC0):
    start = segment(frame, struct.pack(">BHH", 8, height, width) + bytes(10))
    return b"\xff\xd8" + b"".join(before) + start + bytes(1000)


def webp(kind, content):
    return b"RIFF\x40\0\0\0WEBP" + kind + b"\x30\0\0\0" + content + bytes(30)


def lossy(width, height):
    # the two highest bits of each say how to scale it for display
    return webp(b"VP8 ", b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", width | 0x4000, height | 0x8000))


def lossless(width, height):
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", 1 << 28 | (height - 1) << 14 | (width - 1)))


def extended(width, height):
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", b"\x10\0\0\0" + sides)


def tokens(model, detail, width, height):
    return image_tokens(model, detail, url(png(width, height)))


# --- the formulas

# model, detail, width, height, tokens
PUBLISHED = [
    # the guide's own examples
    ("gpt-4o", "high", 1024, 1024, 765),
    ("gpt-4o", "high", 2048, 4096, 1105),
    ("gpt-4o", "low", 4096, 8192, 85),
    ("gpt-5.4", "high", 1024, 1024, 1229),
    ("gpt-5.4", "high", 2048, 2048, 3000),
    ("o4-mini", "high", 1024, 1024, 1762),  # 1024 patches
    ("o4-mini", "high", 1800, 2400, 2498),  # 1452 patches
    # billed, as users have measured: a side of 512.75 takes a second row of tiles, one of 512.5 does not
    ("gpt-4.1", "high", 2049, 513, 1445),
    ("gpt-4.1", "high", 2050, 513, 765),
    ("gpt-4.1", "low", 128, 64, 85),
    ("gpt-4.1", "high", 128, 64, 255),
    ("gpt-4o-mini", "high", 128, 64, 8500),
    ("gpt-4.1-nano", "high", 128, 64, 20),
    ("gpt-5.6-sol", "original", 4000, 2500, 11_850),
    # every row of the tables
    ("gpt-4o-mini", "low", 999, 999, 2833),
    ("gpt-4o-mini", "high", 1024, 1024, 2833 + 4 * 5667),
    ("gpt-4.5-preview", "high", 1024, 1024, 765),
    ("gpt-4-turbo", "high", 1024, 1024, 765),
    ("chatgpt-4o-latest", "high", 1024, 1024, 765),
    ("o1", "high", 1024, 1024, 75 + 4 * 150),
    ("o1-pro", "low", 1024, 1024, 75),
    ("o3", "high", 1024, 1024, 75 + 4 * 150),
    ("computer-use-preview", "high", 1024, 1024, 65 + 4 * 129),
    ("gpt-5", "high", 1024, 1024, 70 + 4 * 140),
    ("gpt-5-chat-latest", "low", 1024, 1024, 70),
    ("gpt-5.1", "high", 1024, 1024, 70 + 4 * 140),
    ("gpt-5-mini", "high", 1024, 1024, 1229),
    ("gpt-5-nano", "high", 1024, 1024, 1536),
    ("gpt-4.1-mini", "high", 1024, 1024, 1659),
    ("gpt-4.1-nano", "high", 1024, 1024, 2520),
    ("gpt-5.2", "high", 1024, 1024, 1229),
    ("gpt-5.5", "high", 1024, 1024, 1229),
    # the budgets of the detail levels
    ("gpt-4.1-mini", "low", 4096, 4096, 6636),
    ("gpt-5.2", "high", 4096, 4096, 4916),
    ("gpt-5.4", "low", 4096, 4096, 4916),
    ("gpt-5.4", "auto", 4096, 4096, 3000),
    ("gpt-5.4-mini", "original", 4096, 4096, 12_000),
    ("gpt-5.5", "low", 4096, 4096, 308),
    ("gpt-5.5", "auto", 4096, 4096, 12_000),
    ("gpt-5.6-luna", "auto", 4096, 4096, 19_661),
    ("gpt-5.6-luna", "high", 4096, 4096, 3000),
    ("gpt-5.6-luna", "low", 4096, 4096, 308),
    ("gpt-6-astra", "original", 4096, 4096, 19_661),
]


@pytest.mark.parametrize(("model", "detail", "width", "height", "expected"), PUBLISHED)
def test_an_image_costs_what_is_published(model, detail, width, height, expected):
    assert tokens(model, detail, width, height) == expected
    assert tokens(model, detail, height, width) == expected


@pytest.mark.parametrize("detail", [None, "auto", "sharp", 3, ["low"], {}])
def test_anything_but_a_level_is_auto(detail):
    assert tokens("gpt-4o", detail, 1024, 1024) == 765
    assert tokens("gpt-5.5", detail, 4096, 4096) == 12_000


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-4o-mini-search-preview-2025-03-11", "gpt-4o-mini"),
        ("ft:gpt-4o-mini-2024-07-18:my-org/team::id", "gpt-4o-mini"),
        ("openai/gpt-4.1-mini", "gpt-4.1-mini"),
        ("gpt-5-mini-2025-08-07", "gpt-5-mini"),
        ("gpt-5.1-codex", "gpt-5.1"),
        ("gpt-5.1-codex-mini", "gpt-5-mini"),
        ("gpt-5.2-pro-2025-12-11", "gpt-5.2"),
        ("gpt-5.6-terra", "gpt-5.6"),
        # names that only begin like one that is known
        ("gpt-4ever", "unknown"),
        ("gpt-5.9", "unknown"),
        ("o11", "unknown"),
        ("gpt-6.1-sol", "unknown"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        (["gpt-4o"], "unknown"),
    ],
)
def test_a_model_goes_by_its_longest_known_name(model, like):
    for detail in ("low", "high", "auto"):
        assert tokens(model, detail, 1500, 1100) == tokens(like, detail, 1500, 1100)


# model, detail, the most that an image can cost
MOST = [
    ("gpt-4o", "high", 85 + 8 * 170),
    ("gpt-4o", "low", 85),
    ("gpt-4o-mini", "auto", 2833 + 8 * 5667),
    ("o4-mini", "high", 2642),
    ("gpt-4.1-mini", "high", 6636),
    ("gpt-5.4", "auto", 3000),
    ("gpt-5.5", "low", 308),
    ("gpt-5.5", "auto", 12_000),
    ("gpt-6-astra", "low", 308),
    ("gpt-6-astra", "high", 3000),
    ("gpt-6-astra", "auto", 12_000),
    ("my-deployment", "auto", 12_000),
]


@pytest.mark.parametrize(("model", "detail", "most"), MOST)
@pytest.mark.parametrize("where", [LINK, None, 5, {"url": LINK}, "data:image/png;base64,AAAA"])
def test_an_image_that_is_not_seen_costs_the_most(model, detail, most, where):
    assert image_tokens(model, detail, where) == most


sides = st.integers(1, 70_000)


@given(
    st.sampled_from([*_RULES, "unknown"]), st.sampled_from(["low", "high", "original", "auto"]), sides, sides
)
def test_no_image_costs_nothing_or_more_than_the_most(model, detail, width, height):
    found = tokens(model, detail, width, height)
    most = image_tokens(model, detail, LINK)
    # where no budget holds, one that is not seen is taken for 10,000 patches and not for 30,000
    assert 1 <= found <= most * (3 if most == 12_000 else 1)


# --- the size in pixels

PICTURES = [
    png(640, 480),
    gif(640, 480),
    jpeg(640, 480),
    jpeg(640, 480, segment(0xE0, bytes(14)), segment(0xE1, b"Exif\0\0" + jpeg(160, 120)), frame=0xC2),
    jpeg(640, 480, *[segment(0xE2, bytes(65_000))] * 20),  # a large colour profile
    jpeg(640, 480, b"\xff\xff", segment(0xC4, bytes(29)), b"\xff"),  # padding, and tables before the frame
    lossy(640, 480),
    lossless(640, 480),
    extended(640, 480),
]


@pytest.mark.parametrize("picture", PICTURES)
def test_the_size_is_read_from_the_first_bytes(picture):
    assert image_size(url(picture)) == (640, 480)
    # three bytes are four characters: the frame may begin anywhere within them
    assert image_size(url(picture + b"x")) == image_size(url(picture + b"xy")) == (640, 480)


def test_only_the_first_bytes_are_decoded():
    assert image_size(url(png(640, 480)) + "!" * 10_000_000) == (640, 480)


@pytest.mark.parametrize(
    "where",
    [
        LINK,
        "data:",
        "data:,hello",
        "data:image/png," + base64.b64encode(png(640, 480)).decode(),
        "data:image/png;base64,",
        "data:image/png;base64,é" + "A" * 100,
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg width='640'/>" * 9).decode(),
        url(png(0, 480)),
        url(png(640, 480)[:20]),
        url(b"\xff\xd8\xff\xe0"),
        url(b"\xff\xd8" + bytes(50)),
        url(b"\xff\xd8" + b"\xff" * 5000),
        url(jpeg(640, 480)[:6] + bytes(100)),
        url(webp(b"ALPH", bytes(10))),
        url(extended(640, 480)[:29]),
        url(b"BM" + bytes(100)),
    ],
)
def test_what_can_not_be_read_has_no_size(where):
    assert image_size(where) is None


starts = st.sampled_from(
    [b"", b"\xff\xd8", b"GIF89a", png(1, 1)[:16], *(webp(k, b"") for k in (b"VP8 ", b"VP8X"))]
)


@given(starts, st.binary(max_size=60), st.integers(0, 3))
def test_no_bytes_raise(start, rest, missing):
    where = url(start + rest)
    assert image_tokens("gpt-4o", "high", where[: len(where) - missing]) >= 85


@given(st.text() | st.text().map("data:{};base64,AAAA".format) | st.text().map("data:x;base64,{}".format))
def test_no_text_raises(where):
    assert image_tokens("gpt-4o", "high", where) >= 85
