import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.parse import ENDPOINTS, Draft, parse
from batcher.request import Rejected

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
MODERATIONS, COMPLETIONS = "/v1/moderations", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
BODY = {"model": "m", "messages": MESSAGES}


def line(custom_id="a", url=CHAT, body=BODY, **more):
    value = {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}
    return orjson.dumps({name: given for name, given in value.items() if given is not ...})


def refusal(raw, seq=17):
    got = parse(raw, seq)
    assert isinstance(got, Rejected), got
    assert got.line == raw
    assert got.row.seq == seq
    start, reason = got.reason[: len(f"line {seq}: ")], got.reason[len(f"line {seq}: ") :]
    assert start == f"line {seq}: "
    assert "\n" not in reason
    return reason


def draft(raw, seq=17):
    got = parse(raw, seq)
    assert isinstance(got, Draft), got
    return got


# --- the Batch form


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, {"model": "m", "messages": MESSAGES}),
        (CHAT, {"model": "m", "messages": [{"the server": "will say so"}]}),
        (RESPONSES, {"model": "m", "input": "hi"}),
        (RESPONSES, {"model": "m", "prompt": {"id": "p"}}),
        (RESPONSES, {"model": "m", "previous_response_id": "r"}),
        (RESPONSES, {"model": "m", "conversation": "c"}),
        (EMBEDDINGS, {"model": "m", "input": ["a", "b"]}),
        (MODERATIONS, {"model": "m", "input": "hi"}),
        (COMPLETIONS, {"model": "m", "prompt": "hi"}),
    ],
)
def test_the_batch_form_is_taken_at_its_word(url, body):
    got = draft(line("a b", url, body))
    assert (got.seq, got.custom_id, got.named, got.url, got.model) == (17, "a b", True, url, "m")
    assert got.fields == body
    assert got.body == orjson.dumps(body)


def test_method_and_url_may_be_left_out():
    assert draft(line(method=...)).url == CHAT
    assert draft(line(url=...)).url == CHAT
    assert draft(line(url=None)).url == CHAT
    assert draft(line(url=..., body={"model": "m", "input": ["x"]})).url == EMBEDDINGS


def test_fields_that_mean_nothing_to_a_batch_are_ignored():
    assert draft(line(metadata={"x": 1}, id=5)).body == orjson.dumps(BODY)


MODEL, NEEDED = {"model": "m"}, {"messages": MESSAGES}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (line(custom_id=...), "custom_id is missing"),
        (line(custom_id=None), "custom_id is missing"),
        (line(custom_id=""), "custom_id must be a string, and not empty"),
        (line(custom_id=5), "custom_id must be a string, and not empty"),
        (line(custom_id=["a"]), "custom_id must be a string, and not empty"),
        (line(method="GET"), 'method must be POST, not "GET"'),
        (line(method="post"), 'method must be POST, not "post"'),
        (line(method=None), "method must be POST, not null"),
        (line(method=["POST"]), 'method must be POST, not ["POST"]'),
        (line(method="x" * 500), 'method must be POST, not "' + "x" * 76 + "..."),
        (line(body=None), "body must be an object, not null"),
        (line(body=[]), "body must be an object, not an array"),
        (line(body="{}"), "body must be an object, not a string"),
        (line(body=5), "body must be an object, not a number"),
        (line(body=1.5), "body must be an object, not a number"),
        (line(body=True), "body must be an object, not true or false"),
        (line(url="/v1/batches"), f'url must be one of {", ".join(ENDPOINTS)}, not "/v1/batches"'),
        (line(url="v1/chat/completions"), f'url must be one of {", ".join(ENDPOINTS)}, not "v1/chat'),
        (line(url="https://api.openai.com/v1/chat/completions"), "url must be one of"),
        (line(url=5), "url must be one of"),
        (line(url=True), "url must be one of"),
        (line(url=[CHAT]), f'url must be one of {", ".join(ENDPOINTS)}, not ["{CHAT}"]'),
        (line(url={"a": 1}), "url must be one of"),
        (line(body=NEEDED), "model is missing"),
        (line(body={**NEEDED, "model": None}), "model is missing"),
        (line(body={**NEEDED, "model": ""}), "model must be a string, and not empty"),
        (line(body={**NEEDED, "model": 4}), "model must be a string, and not empty"),
        (line(body={**NEEDED, "model": ["m"]}), "model must be a string, and not empty"),
        (line(body=MODEL), f"messages is missing: {CHAT} needs it"),
        (line(body={**MODEL, "input": "x"}), f"messages is missing: {CHAT} needs it"),
        (line(url=RESPONSES, body=BODY), f"input is missing: {RESPONSES} needs it"),
        (line(url=EMBEDDINGS, body=MODEL), f"input is missing: {EMBEDDINGS} needs it"),
        (line(url=EMBEDDINGS, body={**MODEL, "prompt": {}}), f"input is missing: {EMBEDDINGS} needs it"),
        (line(url=MODERATIONS, body=MODEL), f"input is missing: {MODERATIONS} needs it"),
        (line(url=COMPLETIONS, body=MODEL), f"prompt is missing: {COMPLETIONS} needs it"),
        (line(body={**BODY, "stream": True}), '"stream": true has no place in a batch: leave it out'),
        (line(url=RESPONSES, body={**MODEL, "input": "x", "background": True}), '"background": true has no'),
        (line(url=..., body=MODEL), "neither a Batch line"),
        (line(url=..., body={}), "neither a Batch line"),
    ],
)
def test_a_batch_line_is_refused_with_its_reason(raw, reason):
    assert refusal(raw).startswith(reason)


@pytest.mark.parametrize("value", [False, None, 0])
def test_streaming_that_is_switched_off_is_no_streaming(value):
    assert draft(line(body={**BODY, "stream": value, "background": value}))


@pytest.mark.parametrize(
    ("url", "body", "reason"),
    [
        (CHAT, {"messages": None}, "messages must be an array of objects, not null"),
        (CHAT, {"messages": "hi"}, "messages must be an array of objects, not a string"),
        (CHAT, {"messages": {"role": "user"}}, "messages must be an array of objects, not an object"),
        (CHAT, {"messages": []}, "messages must be an array of objects, not an empty one"),
        (CHAT, {"messages": ["hi"]}, "messages must be an array of objects, and holds a string"),
        (CHAT, {"messages": [*MESSAGES, None]}, "messages must be an array of objects, and holds null"),
        (RESPONSES, {"input": 5}, "input must be a string or an array, not a number"),
        (RESPONSES, {"input": {"role": "user"}}, "input must be a string or an array, not an object"),
        (RESPONSES, {"input": None}, f"input is missing: {RESPONSES} needs it"),
        (EMBEDDINGS, {"input": None}, "input must be a string or an array, not null"),
        (EMBEDDINGS, {"input": True}, "input must be a string or an array, not true or false"),
        (MODERATIONS, {"input": 1.5}, "input must be a string or an array, not a number"),
        (COMPLETIONS, {"prompt": {"id": "p"}}, "prompt must be a string or an array, not an object"),
    ],
)
def test_content_of_an_impossible_type_is_refused(url, body, reason):
    assert refusal(line(url=url, body={"model": "m", **body})) == reason


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (RESPONSES, {"input": None, "previous_response_id": "r"}),
        (RESPONSES, {"input": [], "prompt": {"id": "p"}}),
        (EMBEDDINGS, {"input": [[1, 2], [3]]}),
        (EMBEDDINGS, {"input": ""}),
        (MODERATIONS, {"input": [{"type": "text", "text": "x"}]}),
        (COMPLETIONS, {"prompt": None}),
        (COMPLETIONS, {"prompt": [1, 2]}),
    ],
)
def test_content_that_some_server_takes_is_for_the_server_to_judge(url, body):
    assert draft(line(url=url, body={"model": "m", **body}))


OUTPUT_LIMITS = ["max_tokens", "max_completion_tokens", "max_output_tokens"]


@pytest.mark.parametrize("name", [*OUTPUT_LIMITS, "n"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "16", True, False, [16], {}])
def test_a_number_that_must_be_whole_is_refused_where_it_is_not(name, value):
    shown = orjson.dumps(value).decode()
    assert refusal(line(body={**BODY, name: value})) == (
        f"{name} must be a whole number, at least 1, not {shown}"
    )


@pytest.mark.parametrize("name", [*OUTPUT_LIMITS, "n"])
@pytest.mark.parametrize("value", [None, 1, 16, 2**40, 16.0])
def test_a_whole_number_is_taken(name, value):
    assert draft(line(body={**BODY, name: value})).fields[name] == value


def test_limits_that_only_some_servers_know_are_theirs_to_judge():
    for name in OUTPUT_LIMITS:  # no limit, for local servers
        assert draft(line(body={**BODY, name: -1}))
    assert draft(line(url=COMPLETIONS, body={"model": "m", "prompt": "x", "max_tokens": 0, "echo": True}))
    for value in (False, 0.5, -1.5):
        refusal(line(url=COMPLETIONS, body={"model": "m", "prompt": "x", "max_tokens": value}))


@pytest.mark.parametrize("url", ENDPOINTS)
@pytest.mark.parametrize("form", ["{0}/", "/{1}", "{1}", "v1/{1}", "/{1}/", "https://api.openai.com/v1/{1}"])
def test_a_url_that_is_nearly_right_is_told_the_right_one(url, form):
    written = form.format(url, url.removeprefix("/v1/"))
    assert refusal(line(url=written)).endswith(f": did you mean {url}?"), written


@pytest.mark.parametrize("url", ["/v1/batches", "/", "", "/v1", 0, False, [], {}])
def test_a_url_that_is_nothing_like_one_gets_no_hint(url):
    assert "did you mean" not in refusal(line(url=url))


# --- bare bodies


@pytest.mark.parametrize(
    ("body", "url"),
    [
        ({"messages": MESSAGES}, CHAT),
        ({"messages": MESSAGES, "store": True}, CHAT),
        ({"messages": MESSAGES, "input": "x"}, CHAT),
        ({"input": "x"}, RESPONSES),
        ({"input": []}, RESPONSES),
        ({"input": [{"role": "user", "content": "x"}]}, RESPONSES),
        ({"input": ["x"], "instructions": "y"}, RESPONSES),
        ({"input": "x", "max_output_tokens": 5}, RESPONSES),
        ({"input": "x", "model": "text-embedding-3-small"}, EMBEDDINGS),
        ({"input": ["x", "y"]}, EMBEDDINGS),
        ({"input": [1, 2, 3]}, EMBEDDINGS),
        ({"input": [[1, 2], [3]]}, EMBEDDINGS),
        ({"input": "x", "dimensions": 5}, EMBEDDINGS),
        ({"input": "x", "encoding_format": "base64"}, EMBEDDINGS),
        ({"input": "x", "model": "omni-moderation-latest"}, MODERATIONS),
        ({"input": [{"type": "text"}], "model": "omni-moderation-latest"}, MODERATIONS),
        ({"prompt": "x"}, COMPLETIONS),
        ({"prompt": ["x", "y"]}, COMPLETIONS),
        ({"prompt": {"id": "p"}}, RESPONSES),
        ({"previous_response_id": "r"}, RESPONSES),
        ({"conversation": "c"}, RESPONSES),
    ],
)
def test_the_endpoint_of_a_bare_body_follows_from_its_shape(body, url):
    body = {"model": "m", **body}
    got = draft(orjson.dumps(body), 5)
    assert (got.url, got.custom_id, got.named, got.body) == (url, "row-5", False, orjson.dumps(body))
    named = draft(line("n", ..., body), 5)
    assert (named.url, named.custom_id, named.named) == (url, "n", True)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "neither a Batch line (custom_id, url, body) nor a request body (messages, input or prompt)"),
        ({"model": "m"}, "neither a Batch line"),
        ({"custom_id": "a", "url": CHAT}, "neither a Batch line"),
        ({"messages": MESSAGES}, "model is missing"),
        ({"model": "m", "text": {}}, f"input is missing: {RESPONSES} needs it"),
        ({"model": "m", "messages": MESSAGES, "stream": True}, '"stream": true'),
        ({"model": "m", "messages": []}, "messages must be an array of objects, not an empty one"),
        ({"model": "m", "input": 5}, "input must be a string or an array, not a number"),
    ],
)
def test_a_bare_body_is_refused_with_its_reason(body, reason):
    assert refusal(orjson.dumps(body)).startswith(reason)


# --- what is no object, or no JSON


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", "an array where a request object is expected"),
        (b'[{"model": "m"}]', "an array where"),
        (b'"text"', "a string where"),
        (b"5", "a number where"),
        (b"true", "true or false where"),
        (b"null", "null where"),
        (b"", "not valid JSON: "),
        (b"hello", "not valid JSON: "),
        (b"{", "not valid JSON: "),
        (line()[:-1], "not valid JSON: "),
        (line() + b"}", "not valid JSON: "),
        (line() + line(), "not valid JSON: "),
        (b"{'model': 'm'}", "not valid JSON: "),
        (b'{"model": "m", "input": NaN}', "not valid JSON: "),
        (b'{"model": "m", "input": Infinity}', "not valid JSON: "),
        (b'{"model": "m", "input": "\\ud800"}', "not valid JSON: "),
        (b'{"model": "m", "input": "\xff"}', "not valid JSON: "),
        (b'{"model": "m", "input": "\xed\xa0\x80"}', "not valid JSON: "),
        (b'{"model": "m", "input": "a\nb"}', "not valid JSON: "),
        (b'{"model": "m", "input": "x",}', "not valid JSON: "),
        (b"[" * 100_000, "not valid JSON: "),
        (b'{"a":' * 100_000, "not valid JSON: "),
    ],
)
def test_what_is_no_request_is_refused(raw, reason):
    assert refusal(raw).startswith(reason)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"[", "this looks like one JSON array"),
        (b'[{"model": "m"}]', "this looks like one JSON array"),
        (b"[]", "this looks like one JSON array"),
        (b"{", "this looks like JSON over several lines"),
        (b"id,text", "this looks like something else, such as CSV"),
        (b'"a"', ""),
        ("{}".encode("utf-16-le"), "this looks like UTF-16"),
        (b"PK\x03\x04\x00", "or a binary file"),
        (b'{"model": "m", "input": NaN}', ""),
    ],
)
def test_the_first_line_says_what_the_file_looks_like(raw, says):
    first, later = refusal(raw, 1), refusal(raw, 2)
    assert says in first
    assert first.startswith(later)
    assert "looks like" not in later


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc3"])
def test_what_is_not_utf8_is_told_with_its_byte(bad):
    assert refusal(b'{"a": "%b"}' % bad) == "not valid JSON: it is not UTF-8 at byte 8"


def test_a_fault_in_the_json_is_told_with_its_column():
    assert refusal(b'{"model": "m", "input": NaN}').endswith(" at column 25")


@pytest.mark.parametrize("depth", [200, 300, 900])
def test_a_deep_body_is_sent_or_refused(depth):
    nested = b"[" * depth + b"]" * depth
    for raw in (
        b'{"model": "m", "input": %b}' % nested,
        b'{"custom_id": "a", "body": {"model": "m", "input": %b}}' % nested,
    ):
        got = parse(raw, 3)
        if isinstance(got, Draft):
            assert orjson.loads(got.body) == got.fields
        else:
            assert got.reason == "line 3: body is nested too deeply to be written again"
    for name in (b"url", b"method"):
        raw = b'{"custom_id": "a", "%b": %b, "body": {"model": "m", "input": "x"}}' % (name, nested)
        assert refusal(raw, 3).startswith(name.decode())


def test_a_refused_line_keeps_its_name_if_it_has_one():
    assert parse(line(method="GET"), 4).row.custom_id == "a"
    assert parse(line(custom_id=5), 4).row.custom_id == "row-4"
    assert parse(line(custom_id=""), 4).row.custom_id == "row-4"
    assert parse(b"{", 4).row.custom_id == "row-4"


def test_the_key_of_a_refused_line_is_of_what_it_says_and_where():
    keys = {parse(b"{", 4).row.key, parse(b"{", 5).row.key, parse(b"[", 4).row.key}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {16}
    assert parse(b"{", 4).row.key in keys


# --- bytes and identity


def test_the_body_is_sent_as_parsed_with_its_keys_in_their_order():
    body = b'{ "z": 1.50, "model" : "m",\t"a": [1 ,2], "messages": [ {} ], "\\u00e9": "\\u0041\\/" }'
    raw = b'{"body": %b, "custom_id": "x"}' % body
    expected = '{"z":1.5,"model":"m","a":[1,2],"messages":[{}],"é":"A/"}'.encode()
    assert draft(raw).body == expected
    assert draft(body).body == expected


SAME = [
    b'{"custom_id":"a","method":"POST","url":"/v1/responses","body":{"model":"m","input":"\xc3\xa9"}}',
    b'{ "custom_id" : "a",\t"url":"/v1/responses", "body":{"model": "m", "input": "\xc3\xa9"} }',
    b'{"body":{"model":"m","input":"\\u00e9"},"url":"/v1/responses","custom_id":"a"}',
    b'{"custom_id":"\\u0061","body":{"model":"m","input":"\xc3\xa9"},"metadata":1}',
]
OTHER = [
    SAME[0].replace(b'"a"', b'"b"'),
    SAME[0].replace(b"/v1/responses", b"/v1/embeddings"),
    SAME[0].replace(b"/v1/responses", b"/v1/moderations"),
    SAME[0].replace(b"\xc3\xa9", b"e"),
    SAME[0].replace(b'{"model":"m",', b"{").replace(b'"}}', b'","model":"m"}}'),
    SAME[0].replace(b'"}}', b'","n":1}}'),
    b'{"model":"m","input":"\xc3\xa9"}',
]


def test_the_digest_is_of_what_is_asked_and_not_of_how_it_is_written():
    assert len({draft(raw, seq).digest() for seq, raw in enumerate(SAME, 1)}) == 1
    digests = {draft(raw).digest() for raw in [SAME[0], *OTHER]}
    assert len(digests) == 1 + len(OTHER)
    assert {len(digest) for digest in digests} == {16}


def test_the_digest_of_a_bare_body_is_not_of_its_place():
    assert draft(OTHER[-1], 1).digest() == draft(OTHER[-1], 2).digest()


def test_a_name_and_a_body_cannot_be_shifted_into_each_other():
    pairs = [("a", "b"), ('a"', "b"), ("a", '"b'), ("", "ab"), ("ab", "")]
    bodies = [draft(line(name or "-", RESPONSES, {"model": "m", "input": text})) for name, text in pairs]
    assert len({each.digest() for each in bodies}) == len(pairs)


# --- anything

names = st.sampled_from(
    ["custom_id", "method", "url", "body", "model", "messages", "input", "prompt", "stream", "background"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["POST", "m", *ENDPOINTS]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=15,
)


@st.composite
def almost_lines(draw):
    good = st.fixed_dictionaries(
        {"custom_id": st.text(min_size=1), "url": st.sampled_from(list(ENDPOINTS)), "body": values}
    )
    raw = json.dumps(draw(values | good)).encode()
    cut = draw(st.integers(0, len(raw)))
    return raw[:cut] + draw(st.binary(max_size=2)) + raw[cut + draw(st.integers(0, 1)) :]


@settings(max_examples=300)
@given(st.binary(max_size=50) | almost_lines(), st.integers(1, 10**9))
def test_any_line_is_a_draft_or_rejected(raw, seq):
    got = parse(raw, seq)
    if isinstance(got, Rejected):
        assert got.reason.startswith(f"line {seq}: ")
        assert (got.line, got.row.seq, bool(got.row.custom_id)) == (raw, seq, True)
        return
    assert (got.seq, len(got.digest()), bool(got.custom_id)) == (seq, 16, True)
    assert got.url in ENDPOINTS
    assert got.fields["model"] == got.model != ""
    assert got.body == orjson.dumps(orjson.loads(got.body)) == orjson.dumps(got.fields)
    assert b"\n" not in got.body
