"""Exact counts, from the rank files in the package."""

import gzip
import hashlib
import subprocess
import sys
from importlib.resources import files
from types import FunctionType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

from batcher.tokens import count_tokens
from batcher.tokens.exact import _encoding_name

NEW, OLD = "gpt-4o-mini", "gpt-3.5-turbo"

#: text, tokens in o200k_base, tokens in cl100k_base
COUNTS = [
    ("", 0, 0),
    ("hello world", 2, 2),
    ("tiktoken is great!", 6, 6),
    ("2 + 2 = 4", 7, 7),
    ("antidisestablishmentarianism", 6, 6),
    ("你好，世界", 3, 6),  # noqa: RUF001  its own comma
    ("お誕生日おめでとう", 8, 9),
    ("<|endoftext|>", 7, 7),  # text that looks like a special token is text
    ("\ud800x", 2, 2),
]


@pytest.mark.parametrize(("text", "new", "old"), COUNTS)
def test_counts_are_those_of_tiktoken(text, new, old):
    assert count_tokens(text, NEW) == new
    assert count_tokens(text, OLD) == old


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4.1-mini-2025-04-14", "o200k_base"),
        ("o3", "o200k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("ft:gpt-3.5-turbo-0125:acme::7p4lURel", "cl100k_base"),
        ("ft:gpt-4o-mini-2024-07-18:acme::id", "o200k_base"),
        ("ft:gpt-4.1-mini-2025-04-14:acme::id", "o200k_base"),
        # not shipped
        ("text-davinci-003", "o200k_base"),
        ("gpt2", "o200k_base"),
        ("gpt-oss-120b", "o200k_base"),
        # not known
        ("gpt-9-nova", "o200k_base"),
        ("my-deployment", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_a_model_has_an_encoding(model, name):
    assert _encoding_name(model) == name


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_the_rank_files_are_the_ones_that_tiktoken_expects(name):
    asked = []
    define = ENCODING_CONSTRUCTORS[name]
    note = {"load_tiktoken_bpe": lambda url, expected_hash: asked.append((url, expected_hash)) or {}}
    FunctionType(define.__code__, {**define.__globals__, **note})()
    ((url, expected),) = asked
    shipped = files("batcher.tokens").joinpath("ranks", f"{url.rpartition('/')[2]}.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(shipped)).hexdigest() == expected


def test_the_network_is_not_touched_and_tiktoken_is_left_as_it_is():
    code = (
        "import socket, sys, tiktoken.load, tiktoken.registry, tiktoken_ext.openai_public as public\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from batcher.tokens import count_tokens\n"
        "assert [count_tokens('hello world', model) for model in ('gpt-4o', 'gpt-4')] == [2, 2]\n"
        "assert public.load_tiktoken_bpe is tiktoken.load.load_tiktoken_bpe\n"
        "assert not tiktoken.registry.ENCODINGS\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tiktoken_is_imported_only_to_count():
    code = (
        "import sys, batcher.job, batcher.tokens\n"
        "assert 'tiktoken' not in sys.modules\n"
        "batcher.tokens.count_tokens('', 'm')\n"
        "assert 'tiktoken' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_long_run_of_one_character_is_counted_in_pieces():
    # in one piece a million spaces are a panic, and thousands of seconds in older versions
    assert count_tokens(" " * 1_000_000, NEW) == 10 * count_tokens(" " * 100_000, NEW)


@given(st.text(max_size=200))
def test_a_token_is_made_of_at_least_one_byte(text):
    assert count_tokens(text, NEW) <= len(text.encode("utf-8", "surrogatepass"))
