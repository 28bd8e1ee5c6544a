"""The tokens of a text, counted and not estimated; the rank files are in this package: no network."""

from base64 import b64decode
from functools import cache
from gzip import decompress
from importlib.resources import files
from types import FunctionType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tiktoken import Encoding

#: The encoding of every model since gpt-4o, and of those that nobody knows yet.
_NEWEST: Final = "o200k_base"
#: The encodings whose ranks are shipped.
_SHIPPED: Final = frozenset({"cl100k_base", _NEWEST})
#: Characters that are encoded at a time: on a run of a million spaces tiktoken panics, which ends the process
#: (seen with 0.14; 600,000 pass).
_PIECE: Final = 100_000


def count_tokens(text: str, model: str) -> int:
    """Count the tokens of a text as the model's encoding splits it, without the overhead of a chat.

    The encoding is the one that tiktoken has for the model, or for the model that a fine-tuned one is made
    of. A model that tiktoken does not know is taken for a new one (o200k_base), and so are the few of before
    2023 whose encodings are not shipped (p50k_base, r50k_base, gpt2). What looks like a special token is
    text. Beyond 100,000 characters it is counted in pieces: each cut can add a token.
    """
    encoding = _encoding(_encoding_name(model))
    starts = range(0, len(text), _PIECE)
    return sum(len(encoding.encode_ordinary(text[start : start + _PIECE])) for start in starts)


def _encoding_name(model: str) -> str:
    from tiktoken.model import encoding_name_for_model

    # Of `ft:gpt-4.1-mini:org::id` tiktoken (0.14) sees the beginning, `ft:gpt-4`, and takes it for a gpt-4.
    base = model.removeprefix("ft:").partition(":")[0]
    try:
        name = encoding_name_for_model(base)
    except KeyError:
        return _NEWEST
    return name if name in _SHIPPED else _NEWEST


@cache
def _encoding(name: str) -> "Encoding":
    """Build an encoding from tiktoken's own definition and our ranks.

    The definition is a function that fetches its ranks by a global name, `load_tiktoken_bpe`. It runs here
    with globals of its own, in which that name is our loader: nothing is fetched, and tiktoken's own modules
    stay as they are.
    """
    from tiktoken import Encoding
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    define = ENCODING_CONSTRUCTORS[name]
    offline = FunctionType(define.__code__, {**define.__globals__, "load_tiktoken_bpe": _ranks})
    return Encoding(**offline())


def _ranks(url: str, **_: object) -> dict[bytes, int]:
    """Read the shipped file of the same name: on each line a token in base64, and its rank."""
    file = files("batcher.tokens").joinpath("ranks", f"{url.rpartition('/')[2]}.gz")
    lines = decompress(file.read_bytes()).splitlines()
    return {b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
