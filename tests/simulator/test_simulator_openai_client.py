"""The official client takes what the simulator says, and raises what it means."""

import openai
import pytest


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


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("500", openai.InternalServerError), ("reset-before", openai.APIConnectionError)],
)
def test_faults_surface_as_its_classes(start, fault, expected):
    with (
        start("--fault", f"{fault}=100%") as simulator,
        openai.OpenAI(base_url=simulator.base_url, api_key="sk", max_retries=0) as client,
        pytest.raises(expected),
    ):
        chat(client)
