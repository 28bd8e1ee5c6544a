import copy
import pickle
import traceback

import msgspec
import pytest

from batcher.errors import ConfigurationError
from batcher.transport.endpoint import Endpoint, Secret

KEY = {"OPENAI_API_KEY": "sk-hidden"}


@pytest.mark.parametrize(
    ("base_url", "url", "target", "host"),
    [
        ("https://api.openai.com/v1", "/v1/chat/completions", "/v1/chat/completions", "api.openai.com"),
        ("https://h/v1/", "/v1/embeddings", "/v1/embeddings", "h"),
        ("http://h:80", "/v1/embeddings", "/v1/embeddings", "h"),
        ("http://h:8000/", "/v1/embeddings", "/v1/embeddings", "h:8000"),
        ("https://h:443/openai/v2", "/v1/responses", "/openai/v2/responses", "h"),
        ("https://h:80/a", "/v1beta/x", "/a/v1beta/x", "h:80"),
        ("http://[::1]:8000/v1", "/v1/x", "/v1/x", "[::1]:8000"),
        ("http://[0:0:0:0:0:0:0:1]", "/v1/x", "/v1/x", "[::1]"),
        ("HTTP://LOCALHOST:8000/v1", "/v1/x", "/v1/x", "localhost:8000"),
        ("https://bücher.example/v1", "/v1/x", "/v1/x", "xn--bcher-kva.example"),
        ("http://h/v1", "/v1/x y\r\nHost: evil", "/v1/x%20y%0D%0AHost:%20evil", "h"),
    ],
)
def test_where_a_request_goes(base_url, url, target, host):
    endpoint = Endpoint.parse(base_url)
    assert endpoint.target(url) == target
    assert endpoint.authority == host
    assert endpoint.head(url).startswith(f"POST {target} HTTP/1.1\r\nHost: {host}\r\n".encode())


@pytest.mark.parametrize("same", ["https://h/v1", "https://h:443/v1/", "HTTPS://H/v1"])
def test_equal_places_have_equal_base_urls(same):
    assert Endpoint.parse(same).base_url == "https://h/v1"


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("localhost:8000/v1", "does not begin with http"),
        ("api.openai.com/v1", "does not begin with http"),
        ("ftp://h/v1", "does not begin with http"),
        ("http:/h/v1", "does not begin with http"),
        ("https:///v1", "names no host"),
        ("https://:80/v1", "names no host"),
        ("https://user:hunter2@h/v1", "holds a user name or password"),
        ("https://h/v1?key=hunter2", "holds a query"),
        ("https://h/v1#hunter2", "holds a query or a fragment"),
        ("https://h:99999/v1", "impossible port"),
        ("https://h:0/v1", "impossible port"),
        ("https://h:x/v1", "impossible port"),
        ("https://[::1/v1", "is malformed"),
        ("https://h /v1", "space or a control"),
        ("https://h/v1\n", "space or a control"),
        ("https://h..x/v1", "impossible host"),
        ("https://h%00/v1", "impossible host"),
        ("https://" + "a" * 64 + "/v1", "impossible host"),
    ],
)
def test_a_bad_base_url_is_one_clear_line(base_url, says):
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.parse(base_url)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_environment_of_the_official_client_is_honoured():
    endpoint = Endpoint.from_environment(
        None,
        KEY
        | {
            "OPENAI_BASE_URL": "http://gateway:9/v1",
            "OPENAI_ORG_ID": "org-1",
            "OPENAI_PROJECT_ID": "proj-1",
            "OPENAI_CUSTOM_HEADERS": "X-Team: nightly: 7\n\nuser-agent: mine",
        },
    )
    assert endpoint.base_url == "http://gateway:9/v1"
    lines = endpoint.head("/v1/x").decode().split("\r\n")
    for line in (
        "Authorization: Bearer sk-hidden",
        "OpenAI-Organization: org-1",
        "OpenAI-Project: proj-1",
        "X-Team: nightly: 7",
        "user-agent: mine",
        "Content-Type: application/json",
        "Accept: application/json",
    ):
        assert lines.count(line) == 1
    assert lines[-1] == "Idempotency-Key: "
    assert not [line for line in lines if line.startswith("User-Agent: batcher/")]


def test_defaults_and_what_goes_before_what():
    assert Endpoint.from_environment(None, KEY).base_url == "https://api.openai.com/v1"
    assert Endpoint.from_environment(None, KEY | {"OPENAI_BASE_URL": " "}).base_url.endswith("openai.com/v1")
    assert Endpoint.from_environment("http://a", KEY | {"OPENAI_BASE_URL": "http://b"}).base_url == "http://a"
    custom = Endpoint.from_environment(None, KEY | {"OPENAI_CUSTOM_HEADERS": "authorization: Token t"})
    assert custom.head("/v1/x").lower().count(b"authorization") == 1
    assert b"User-Agent: batcher/" in Endpoint.from_environment(None, KEY).head("/v1/x")


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": ""}, {"OPENAI_API_KEY": "  "}])
def test_no_key_says_where_to_set_one(environ):
    with pytest.raises(ConfigurationError, match=r"OPENAI_API_KEY in the environment or in \.env"):
        Endpoint.from_environment(None, environ)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OPENAI_CUSTOM_HEADERS", "A: 1\nhunter2", "line 2 of OPENAI_CUSTOM_HEADERS is not of the form"),
        ("OPENAI_CUSTOM_HEADERS", "bad name: hunter2", "line 1 of OPENAI_CUSTOM_HEADERS has a name"),
        ("OPENAI_CUSTOM_HEADERS", ": hunter2", "line 1 of OPENAI_CUSTOM_HEADERS has a name"),
        ("OPENAI_CUSTOM_HEADERS", "A: hunter2\rB: 2", "line 1 of OPENAI_CUSTOM_HEADERS has a line break"),
        ("OPENAI_CUSTOM_HEADERS", "content-length: 7", "sets content-length, which batcher sets itself"),
        ("OPENAI_API_KEY", "hunter2\r\nX: y", "OPENAI_API_KEY has a line break"),
        ("OPENAI_API_KEY", "hunter2…", "OPENAI_API_KEY has a line break, another control character, or one"),
        ("OPENAI_ORG_ID", "hunter2\x00", "OPENAI_ORG_ID has a line break"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named_but_not_shown(variable, value, says):
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.from_environment(None, KEY | {variable: value})
    assert says in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_no_way_of_printing_an_endpoint_shows_a_credential():
    endpoint = Endpoint.from_environment(None, KEY | {"OPENAI_CUSTOM_HEADERS": "X-Gate: sk-hidden"})
    for text in (repr(endpoint), str(endpoint), f"{endpoint}", f"{endpoint.headers[0][1]:>9}"):
        assert "sk-hidden" not in text
    assert "***" in repr(endpoint)
    with pytest.raises(TypeError):
        pickle.dumps(endpoint)
    with pytest.raises(TypeError):
        msgspec.json.encode(endpoint)
    with pytest.raises(TypeError):
        copy.deepcopy(Secret("x"))


def test_what_a_server_quotes_of_our_credentials_is_masked():
    endpoint = Endpoint.parse("http://h/v1", {"Authorization": "Bearer sk-secret-key-1", "X-Short": "abc"})
    assert endpoint.mask(b'{"error": "bad header Bearer sk-secret-key-1, abc"}') == (
        b'{"error": "bad header Bearer ***, abc"}'
    )
