"""The official client takes what the simulator says, and raises what it means."""

import struct
from base64 import b64decode
from contextlib import contextmanager

import openai
import pytest

from batcher.simulator import FAULT_NAMES


@pytest.fixture(scope="module")
def client(plain):
    with openai.OpenAI(base_url=plain.base_url, api_key="sk-any", max_retries=0) as opened:
        yield opened


def chat(client, **fields):
    return client.chat.completions.create(
        **{"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}
    )


def test_chat(client):
    answer = chat(client, max_tokens=50)
    assert answer.choices[0].message.content.endswith(".")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert answer._request_id.startswith("req_")


def test_responses(client):
    answer = client.responses.create(model="m", instructions="Be kind.", input="hello")
    assert answer.output_text.endswith(".")
    assert answer.status == "completed"
    assert answer.usage.input_tokens == 3 + 2 + 3 + 2
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    assert client.responses.create(model="m", input=parts).usage.input_tokens == 3 + 2


def test_embeddings(client):
    by_default = client.embeddings.create(model="m", input=["a", "b"])
    floats = client.embeddings.create(model="m", input=["a", "b"], encoding_format="float")
    assert [one.index for one in by_default.data] == [0, 1]
    assert [one.embedding for one in by_default.data] == [one.embedding for one in floats.data]
    base64 = client.embeddings.create(model="m", input="a", encoding_format="base64").data[0].embedding
    assert struct.pack("<8f", *floats.data[0].embedding) == b64decode(base64)
    assert len(by_default.data[0].embedding) == 8
    assert len(client.embeddings.create(model="m", input="a", dimensions=100).data[0].embedding) == 100
    assert client.embeddings.create(model="m", input=[[1, 2], [3]]).usage.prompt_tokens == 3


def test_moderations(client):
    answer = client.moderations.create(model="m", input=["a", "b"])
    assert [result.flagged for result in answer.results] == [False, False]
    assert answer.results[0].category_scores.self_harm_intent < 0.1
    assert len(client.moderations.create(model="m", input=[{"type": "text", "text": "a"}]).results) == 1


def test_completions(client):
    answer = client.completions.create(model="m", prompt=["a", "b"], max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens <= 6


def test_models(client):
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]
    assert client.models.retrieve("whatever").id == "whatever"


def test_errors_surface_as_its_classes(client, start):
    with pytest.raises(openai.BadRequestError, match="stream"):
        chat(client, stream=True)
    with pytest.raises(openai.NotFoundError):
        client.files.list()
    options = ("--api-key", "sk-right", "--rpm", "1", "--fault", "500=0")
    with start(*options) as strict:
        with openai.OpenAI(base_url=strict.base_url, api_key="sk-wrong", max_retries=0) as wrong:
            with pytest.raises(openai.AuthenticationError) as refused:
                chat(wrong)
            assert refused.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=strict.base_url, api_key="sk-right", max_retries=0) as right:
            chat(right)
            with pytest.raises(openai.RateLimitError) as limited:
                chat(right)
            assert limited.value.code == "rate_limit_exceeded"


#: Each fault that is no answer -> the class that the client raises for it.
RAISED = {
    openai.BadRequestError: (
        *("400", "400-retry", "400-context_length_exceeded", "400-content_filter", "error-array"),
    ),
    openai.AuthenticationError: ("401",),
    openai.PermissionDeniedError: ("403",),
    openai.NotFoundError: ("404",),
    openai.ConflictError: ("409", "key-in-progress"),
    openai.UnprocessableEntityError: ("422",),
    openai.RateLimitError: tuple(name for name in FAULT_NAMES if name.startswith("429")),
    openai.InternalServerError: (
        *("500", "500-no-retry", "502", "503", "503-retry-after", "503-server_is_overloaded", "504", "529"),
        *("error-string", "error-empty"),
    ),
    # Statuses that it has no class for; the redirect it is told not to follow.
    openai.APIStatusError: ("402", "402-retry-after", "408", "413", "redirect"),
    openai.APIConnectionError: ("reset-before", "reset-after", "cut-off", "wrong-length"),
    openai.APITimeoutError: ("hang",),
}


def test_each_fault_that_is_no_answer_surfaces_as_its_class(start, script):
    expected = {name: kind for kind, names in RAISED.items() for name in names}
    lines = [{"fault": name, "after": number, "count": 1} for number, name in enumerate(expected, 1)]
    raised = {}
    with (
        start(*script(*lines)) as simulator,
        openai.DefaultHttpxClient(follow_redirects=False) as http,
        openai.OpenAI(
            base_url=simulator.base_url, api_key="sk", max_retries=0, timeout=1, http_client=http
        ) as client,
    ):
        for name in expected:
            with pytest.raises(openai.OpenAIError) as caught:
                chat(client)
            raised[name] = caught.value
        assert chat(client).choices
    assert {name: type(error) for name, error in raised.items()} == expected
    for name in ("429-slow_down", "429-billing_not_active", "503-server_is_overloaded"):
        assert raised[name].code == name.partition("-")[2]
    assert raised["401"].code == "invalid_api_key"
    assert raised["404"].param == "model"
    assert raised["429"].response.headers["retry-after-ms"] == "20"


@pytest.fixture
def meeting(start, script):
    """Return the context manager of a client whose requests meet these faults, one each, in turn."""

    @contextmanager
    def opened(names):
        lines = [{"fault": name, "after": number, "count": 1} for number, name in enumerate(names, 1)]
        with (
            start(*script(*lines)) as simulator,
            openai.OpenAI(base_url=simulator.base_url, api_key="sk", max_retries=0) as client,
        ):
            yield client

    return opened


def test_it_reads_an_answer_that_is_slow_or_ended_early(meeting):
    ends = {"drip": "stop", "blank-lines": "stop", "truncated": "length", "filtered": "content_filter"}
    with meeting(ends) as client:
        answers = {name: chat(client).choices[0] for name in ends}
    assert {name: choice.finish_reason for name, choice in answers.items()} == ends
    assert all(choice.message.content.endswith(".") for choice in answers.values())


def test_it_reads_the_state_of_a_response(meeting):
    states = {"failed": "failed", "queued": "queued", "truncated": "incomplete", "filtered": "incomplete"}
    with meeting(states) as client:
        answers = {name: client.responses.create(model="m", input="hello") for name in states}
    assert {name: answer.status for name, answer in answers.items()} == states
    assert answers["failed"].error.code == "server_error"
    assert answers["truncated"].incomplete_details.reason == "max_output_tokens"
    assert answers["filtered"].incomplete_details.reason == "content_filter"
