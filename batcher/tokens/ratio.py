"""How many tokens a byte of text makes, for each model: a guess at first, then what answers say.

A ratio of sums: the prompt tokens that answers report, over the bytes of text that they were for. What is
admitted are sums too, a minute's worth of them, so that single rows may be off in either direction.
"""

from math import log
from typing import Final

from batcher.request import Request

#: Tokens per byte until something is known: what OpenAI's own characters/4 comes to for ASCII.
STARTING_RATIO: Final = 0.25

#: What is learned loses half of its weight with so many bytes of newer text. That is a minute of 50,000
#: tokens a minute, so that the ratio follows a file that is sorted by language; and it is the mean of some
#: 700 rows of 400 bytes, which is right within 0.6% where single rows vary by 15%.
_HALF_LIFE_BYTES: Final = 200_000
#: The weight of all text that ever was: what a stream without end sums up to.
_WHOLE_BYTES: Final = _HALF_LIFE_BYTES / log(2)
#: The guess weighs as much as so many bytes, some ten rows: a first answer that is odd moves it little.
_STARTING_BYTES: Final = 5_000
#: A ratio that is 1% high costs 1% of use, one that is right gets a 429 now and then (`FACTS.md`, "Waiting
#: and concurrency"): lean to the high side by more than the noise above.
_LEAN: Final = 1.01

#: What a chat costs besides its text: 3 tokens for each message and 1 for its role, 3 for the answer to begin
#: with (OpenAI's cookbook, "How to count tokens with tiktoken"). It goes with messages, not with bytes: left
#: in, it would make the ratio of short rows too high for long ones.
_MESSAGE_TOKENS: Final = 4
_ANSWER_TOKENS: Final = 3
_CHATS: Final = frozenset({"/v1/chat/completions", "/v1/responses"})


class Ratios:
    """Tokens per byte of text, for each model.

    `of` is for `batcher.tokens.estimate`, `learn` for every answer. Memory goes with the models that have
    answered, not with the rows.

        ratios = Ratios()
        ratios.of("gpt-4o-mini")  # 0.25
        ratios.learn(request, prompt_tokens=412)
    """

    def __init__(self) -> None:
        #: Model -> bytes and tokens, the older the less they weigh.
        self._sums: dict[str, tuple[float, float]] = {}

    def of(self, model: str) -> float:
        """Return the tokens to expect of a byte of text, slightly on the high side.

        It can fall below 1/4, for text of which a character takes several bytes: that no text is charged less
        than characters/4 is the estimate's own rule.
        """
        sums = self._sums.get(model)
        return STARTING_RATIO if sums is None else _LEAN * sums[1] / sums[0]

    def learn(self, request: Request, prompt_tokens: int) -> None:
        """Learn from an answer: `prompt_tokens` are those of its usage, cached ones included.

        Nothing is learned from a request that is not text alone (`input_bytes` is 0), from a reply without
        usage, and from counts that text can't have: a token is made of at least one byte.
        """
        size = request.input_bytes
        if not size:
            return
        tokens = prompt_tokens
        if request.path in _CHATS:
            messages = max(request.body.count(b'"role":'), 1)
            tokens -= messages * _MESSAGE_TOKENS + _ANSWER_TOKENS
        if not 0 < tokens <= size:
            return
        known, counted = self._sums.get(request.model, (_STARTING_BYTES, _STARTING_BYTES * STARTING_RATIO))
        kept = 0.5 ** (size / _HALF_LIFE_BYTES)
        # Nearly `size`; of a long text the beginning has been half forgotten at its end.
        weight = (1 - kept) * _WHOLE_BYTES
        self._sums[request.model] = (known * kept + weight, counted * kept + weight * tokens / size)
