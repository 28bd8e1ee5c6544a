"""Question: what do a bill and an estimate cost per request, beside genai-prices' own calc_price?

    python benchmarks/prices.py

Contenders run in the same process, in turn; the table shows the best of several repeats.
"""

import platform
import time
import timeit
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import orjson

from batcher.money.cost import worst_cost
from batcher.money.prices import PriceBook
from batcher.money.usage import Usage, WireUsage
from batcher.tokens import estimate

REPEATS = 15
MODEL = "gpt-4o-mini"
WIRE = (
    b'{"prompt_tokens":2000,"completion_tokens":300,"total_tokens":2300,'
    b'"prompt_tokens_details":{"cached_tokens":1920,"audio_tokens":0},"completion_tokens_details":'
    b'{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)
BODY = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "Answer with one word: positive, negative or neutral."},
        {
            "role": "user",
            "content": "It arrived late, but the sound is better than I expected for the price. " * 3,
        },
    ],
    "max_tokens": 5,
    "temperature": 0,
}


def best_us(call, number):
    return min(timeit.repeat(call, number=number, repeat=REPEATS)) / number * 1e6


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = f"{len(names)} x {names[0]}" if names else platform.processor()
    return f"{cpu}, {platform.system()}, Python {platform.python_version()}"


def main():
    started = time.perf_counter()
    import genai_prices

    imported_s = time.perf_counter() - started
    now = time.time()
    book = PriceBook("https://api.openai.com/v1", now)
    started = time.perf_counter()
    book.price(MODEL, "default")
    compiled_s = time.perf_counter() - started
    decoder = msgspec.json.Decoder(WireUsage)
    wire = decoder.decode(WIRE)
    cached = wire.normalise("default")
    plain = Usage(prompt_tokens=2000, completion_tokens=300, tier="default")
    listed = genai_prices.Usage(input_tokens=2000, cache_read_tokens=1920, output_tokens=300)
    when = datetime.fromtimestamp(now, UTC)
    size = len(orjson.dumps(BODY))
    admission = estimate("/v1/chat/completions", BODY)

    def calc_price():
        genai_prices.calc_price(listed, MODEL, provider_id="openai", genai_request_timestamp=when)

    base = best_us(calc_price, 300)
    rows = [
        ("genai_prices.calc_price", base),
        ("PriceBook.cost, cached tokens", best_us(lambda: book.cost(MODEL, cached), 20_000)),
        ("PriceBook.cost, no cached tokens", best_us(lambda: book.cost(MODEL, plain), 20_000)),
        ("decode WireUsage alone", best_us(lambda: decoder.decode(WIRE), 20_000)),
        ("WireUsage.normalise", best_us(lambda: wire.normalise("default"), 20_000)),
        ("worst_cost", best_us(lambda: worst_cost(book, MODEL, BODY, size, admission), 20_000)),
        ("estimate, two messages", best_us(lambda: estimate("/v1/chat/completions", BODY), 20_000)),
        ("(an empty call)", best_us(lambda: None, 20_000)),
    ]
    print(__doc__.splitlines()[0])
    print(f"Machine: {machine()}")
    once = f"import {imported_s * 1e3:.0f} ms, load and compile {compiled_s * 1e3:.0f} ms"
    print(f"Once a run, genai-prices: {once}\n")
    print(f"{'what':36}{'us a call':>10}{'calc_price is':>16}")
    for name, micros in rows:
        print(f"{name:36}{micros:>10.2f}{base / micros:>14.0f} x")


if __name__ == "__main__":
    main()
