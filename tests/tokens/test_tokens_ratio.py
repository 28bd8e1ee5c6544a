"""What answers teach about bytes and tokens."""

# ruff: noqa: RUF001  Chinese has commas of its own

from itertools import product
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.request import Request, Row
from batcher.tokens import Ratios, count_tokens, estimate

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
ROOT = Path(__file__).parent.parent.parent


def request(path=EMBEDDINGS, size=1000, body=b"{}", model="m"):
    return Request((Row(1, b"k" * 16, "a"),), "key", "shared", model, path, body, 1, None, input_bytes=size)


def taught(*answers):
    """Learn from (bytes, tokens) of answers without overhead."""
    ratios = Ratios()
    for size, tokens in answers:
        ratios.learn(request(size=size), tokens)
    return ratios.of("m")


def test_it_begins_with_a_quarter():
    assert Ratios().of("m") == 0.25


def test_what_is_learned_of_one_model_holds_for_that_model():
    ratios = Ratios()
    ratios.learn(request(model="a"), 900)
    assert ratios.of("a") > 0.25
    assert ratios.of("b") == 0.25


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.25, 0.3, 0.6, 1.0])
def test_in_time_it_is_what_answers_show_and_a_little_more(ratio):
    assert taught(*[(1000, 1000 * ratio)] * 2000) == pytest.approx(1.01 * ratio, rel=0.001)


def test_sums_count_and_not_rows():
    # nine short rows of 0.9 weigh as much as their bytes
    found = taught(*([(10, 9)] * 9 + [(910, 182)]) * 2000)
    assert found == pytest.approx(1.01 * (81 + 182) / 1000, rel=0.01)


def test_one_odd_answer_moves_it_little():
    assert taught((500, 500)) < 0.33
    assert taught((500, 1)) > 0.22


def test_after_some_pages_it_is_near():
    # the starting guess weighs 5,000 bytes
    assert taught(*[(1000, 500)] * 5) == pytest.approx(1.01 * 0.375, rel=0.01)
    assert taught(*[(1000, 500)] * 100) == pytest.approx(1.01 * 0.5, rel=0.03)


def test_it_follows_a_file_that_changes():
    english, chinese = [(1000, 220)] * 2000, [(1000, 300)] * 200
    # after one half-life, half of the way
    assert taught(*english, *chinese) == pytest.approx(1.01 * 0.26, rel=0.01)


def test_a_large_answer_is_forgotten_like_many_small_ones():
    whole = taught((400_000, 200_000), (100_000, 20_000))
    pieces = taught(*[(4000, 2000)] * 100, *[(1000, 200)] * 100)
    assert whole == pytest.approx(pieces, rel=0.001)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        (1000, 0),  # no usage in the reply
        (1000, -5),
        (1000, 1001),  # more tokens than bytes: there was more than text
        (0, 300),  # more than text was sent
    ],
)
def test_what_can_not_be_is_not_learned(size, tokens):
    assert taught((size, tokens)) == 0.25


SYSTEM_AND_USER = orjson.dumps({"messages": [{"role": "system"}, {"role": "user"}]})
ONE_MESSAGE = orjson.dumps({"messages": [{"role": "user", "content": 'it says "role": no'}]})
NO_MESSAGE = orjson.dumps({"input": "text"})


@pytest.mark.parametrize(
    ("path", "body", "overhead"),
    [
        (CHAT, SYSTEM_AND_USER, 11),
        (CHAT, ONE_MESSAGE, 7),
        (RESPONSES, SYSTEM_AND_USER, 11),
        (RESPONSES, NO_MESSAGE, 7),
        (EMBEDDINGS, NO_MESSAGE, 0),
        ("/v1/completions", NO_MESSAGE, 0),
    ],
)
def test_the_overhead_of_a_chat_is_not_taken_for_text(path, body, overhead):
    ratios, plain = Ratios(), Ratios()
    ratios.learn(request(path, 100, body), 30 + overhead)
    plain.learn(request(size=100), 30)
    assert ratios.of("m") == plain.of("m")
    only_overhead = Ratios()
    only_overhead.learn(request(path, 100, body), overhead)
    assert only_overhead.of("m") == 0.25


@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.integers(-10, 10**7), st.sampled_from([CHAT, EMBEDDINGS])),
        max_size=50,
    )
)
def test_it_never_leaves_what_text_can_be(answers):
    ratios = Ratios()
    for size, tokens, path in answers:
        ratios.learn(request(path, size), tokens)
        assert 0 < ratios.of("m") <= 1.01


# --- against the true tokenizer

CHINESE = [
    "这个产品的质量很好，但是送货太慢了。",
    "客服的态度也不错，问题很快就解决了。",
    "我已经用了三个月，没有发现任何毛病。",
    "电池的续航时间比宣传的要短一些。",
    "屏幕的颜色非常鲜艳，看视频很舒服。",
    "价格有点高，不过还是值得买的。",
    "包装盒有破损，里面的东西没有问题。",
    "说明书只有英文，看不太懂。",
    "声音很大，晚上会吵到邻居。",
    "第二次购买了，家里人都喜欢。",
    "安装很简单，十分钟就弄好了。",
    "颜色和图片上不一样，有点失望。",
]


def english():
    lines = (ROOT / "jobs" / "amazon_reviews.jsonl").read_bytes().splitlines()
    return [orjson.loads(line)["text"] for line in lines[:600]]


def chinese():
    return ["".join(three) for three in product(CHINESE, repeat=3)]


def code():
    lines = (ROOT / "batcher" / "source.py").read_text().splitlines(keepends=True)
    return ["".join(lines[start : start + 20]) for start in range(0, len(lines), 4)]


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-3.5-turbo"])
@pytest.mark.parametrize("texts", [english, chinese, code])
def test_after_learning_what_is_admitted_is_just_above_what_is_counted(texts, model):
    ratios, admitted, counted, at_least, prompts = Ratios(), 0, 0, 0, texts()
    for number, text in enumerate(prompts):
        tokens = count_tokens(text, model)
        size = estimate(EMBEDDINGS, {"input": text}, ratios.of(model))
        if number >= len(prompts) // 2:
            admitted, counted, at_least = admitted + size.tokens, counted + tokens, at_least + len(text) / 4
        ratios.learn(request(size=size.input_bytes, model=model), tokens)
    assert admitted >= counted
    # a rounding up of each row, the lean, and what is left of the guess
    assert admitted <= max(1.06 * counted, at_least + len(prompts))
