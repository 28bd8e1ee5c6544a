"""What the answers say: a sentence made from a hash, or the sentiment of the text that was asked about."""

from collections.abc import Callable
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

import orjson

from batcher.simulator.config import StartError


class Said(NamedTuple):
    """An answer, made ready once: as words, and as the JSON text that they are when joined."""

    words: list[str]
    text: bytes


#: (digest of the request, the last user text) -> the answer.
Voice: TypeAlias = Callable[[bytes, str], Said]

_SUBJECTS = [
    "The tide",
    "A lantern",
    "The old mill",
    "Every harbour",
    "One sparrow",
    "The road",
    "A letter",
    "Rain",
]
_VERBS = ["keeps", "finds", "remembers", "outlasts", "follows", "answers", "carries", "returns to"]
_OBJECTS = [
    "the morning",
    "its own name",
    "a narrow valley",
    "the last ferry",
    "what was lent",
    "a door",
    "us",
    "it",
]
_ENDINGS = [
    "",
    "at once",
    "after all",
    "without a word",
    "for as long as the light lasts",
    "again",
    "in time",
    "twice",
]


def _ready(text: str) -> Said:
    return Said(text.split(), orjson.dumps(text))


_SENTENCES = [
    _ready(" ".join(parts).strip() + ".") for parts in product(_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)
]


def sentence(digest: bytes, text: str) -> Said:  # noqa: ARG001  a Voice
    """Return one of 4,096 sentences of 3 to 14 words, chosen by the digest."""
    return _SENTENCES[(digest[0] << 8 | digest[1]) & 0xFFF]


def sentiment_voice() -> Voice:
    """Make a voice that answers `positive`, `negative` or `neutral`.

    The model is VADER (Hutto and Gilbert, 2014) with its authors' thresholds: a compound score of at
    least 0.05 is positive, of at most -0.05 negative.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise StartError(
            "answering by sentiment needs the vaderSentiment package: pip install 'batcher-openai[demo]'"
        ) from None
    scores = SentimentIntensityAnalyzer().polarity_scores

    positive, negative, neutral = map(_ready, ("positive", "negative", "neutral"))

    def voice(digest: bytes, text: str) -> Said:  # noqa: ARG001  a Voice
        compound = scores(text)["compound"]
        return positive if compound >= 0.05 else negative if compound <= -0.05 else neutral

    return voice


def make_voice(answers: Literal["text", "sentiment"]) -> Voice:
    """Return the voice of this name; raises `StartError` where its package is missing."""
    return sentiment_voice() if answers == "sentiment" else sentence
