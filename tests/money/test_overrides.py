"""The prices file: what it may say, and what each mistake in it is answered with."""

import decimal

import pytest

from batcher.errors import ConfigurationError
from batcher.money.overrides import read_overrides
from batcher.money.prices import PriceBook
from batcher.money.usage import Usage

AT = 1_795_000_000.0


@pytest.fixture
def book(tmp_path):
    def from_file(content, name="prices.json"):
        path = tmp_path / name
        path.write_text(content)
        return PriceBook("http://localhost:8000/v1", AT, read_overrides(path))

    return from_file


def test_prices_are_exact_as_text_and_as_numbers(book):
    prices = book('{"a": {"input": "0.15", "cached_input": "0.075", "output": "0.60"}, "b": {"input": 0.1}}')
    usage = Usage(prompt_tokens=2000, cached_tokens=1920, completion_tokens=300)
    assert prices.cost("a", usage) == 336_000_000
    assert prices.cost("b", Usage(prompt_tokens=3)) == 300_000


def test_toml_says_the_same(book):
    prices = book('[my-model]\ninput = 0.1\noutput = "0.3"\n[my-model.tiers.flex]\ninput = 0.05\n', "p.toml")
    assert prices.cost("my-model", Usage(prompt_tokens=1, completion_tokens=1)) == 400_000
    assert prices.cost("my-model", Usage(prompt_tokens=1, tier="flex")) == 50_000


def test_a_listed_model_is_priced_by_the_file_alone(book):
    prices = book('{"gpt-4o-mini": {"input": 1}}')
    assert (
        prices.cost("gpt-4o-mini", Usage(prompt_tokens=5, cached_tokens=4, cache_write_tokens=1)) == 5_000_000
    )
    assert prices.cost("gpt-4o-mini", Usage(prompt_tokens=5, completion_tokens=1)) is None
    assert prices.price("gpt-4o-mini", "priority") is None
    assert prices.price("gpt-4o-mini", "default") is not None
    assert prices.cost("gpt-4o-mini-2024-07-18", Usage(prompt_tokens=1)) == 150_000
    assert prices.worst("gpt-4o-mini", None)(7, 0) == 7_000_000
    assert prices.worst("gpt-4o-mini", None)(7, 1) is None


def test_free_is_a_price(book):
    prices = book('{"llama": {"input": 0, "output": "0"}}')
    assert prices.cost("llama", Usage(prompt_tokens=5, completion_tokens=5)) == 0


def test_the_ambient_decimal_context_changes_nothing(book):
    with decimal.localcontext(decimal.Context(prec=1, traps=[decimal.Inexact, decimal.Rounded])):
        assert book('{"a": {"input": 0.123456789}}').cost("a", Usage(prompt_tokens=1000)) == 123_456_789


MISTAKES = [
    ('{"a": {"input": "-1"}}', "a.input must be dollars"),
    ('{"a": {"input": -1}}', "a.input must be dollars"),
    ('{"a": {"input": "NaN"}}', "a.input must be dollars"),
    ('{"a": {"input": NaN}}', "NaN is not a price"),
    ('{"a": {"input": Infinity}}', "Infinity is not a price"),
    ('{"a": {"input": "$1"}}', "a.input must be dollars"),
    ('{"a": {"input": "1e2"}}', "a.input must be dollars"),
    ('{"a": {"input": true}}', "a.input must be dollars"),
    ('{"a": {"input": null}}', "a.input must be dollars"),
    ('{"a": {"input": [1]}}', "a.input must be dollars"),
    ('{"a": {"input": 10001}}', "a.input must be at most 10000 dollars"),
    ('{"a": {"input": 1e999999}}', "a.input must be at most 10000 dollars"),
    ('{"a": {"input": 1e-99999}}', "a.input must be at most 10000 dollars"),
    ('{"a": {"input": 1, "outptu": 2}}', "a.outptu is not a price"),
    ('{"a": {"input": 1, "above": 2}}', "a.above is not a price"),
    ('{"a": {"output": 1}}', "a.input is missing"),
    ('{"a": 1}', "a must be an object"),
    ("[]", "the whole must be an object"),
    ('{"a": {"input": 1, "tiers": []}}', "a.tiers must be an object"),
    ('{"a": {"input": 1, "tiers": {"flex": {"input": "x"}}}}', "a.tiers.flex.input must be dollars"),
    ('{"a": {"input": 1, "input": 2}}', "input is there twice"),
    ('{"a": {"input": 1}, "a": {"input": 2}}', "a is there twice"),
    ('{"a": ', "can't be parsed"),
    ("", "can't be parsed"),
    ("[" * 100_000, "can't be parsed"),
    ('{"a": {"input": ' + "9" * 5000 + "}}", "can't be parsed"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_a_mistake_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "prices.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as raised:
        read_overrides(path)
    text = str(raised.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text


def test_files_that_can_not_be_read_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_overrides(tmp_path / "absent.json")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_overrides(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"\xe9": {"input": 1}}')
    with pytest.raises(ConfigurationError, match="can't be parsed"):
        read_overrides(tmp_path / "latin.json")
    (tmp_path / "p.toml").write_text("a = ")
    with pytest.raises(ConfigurationError, match="can't be parsed"):
        read_overrides(tmp_path / "p.toml")
