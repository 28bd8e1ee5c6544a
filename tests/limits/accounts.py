"""What was sent on an account, by brute force: a log that slides."""

from collections import deque

from batcher.limits.window import DAY_S, MINUTE_S


class Entry:
    """A request that was sent: what it counts is what it reserved, until its true size is known."""

    __slots__ = ("at", "tokens")

    def __init__(self, at, tokens):
        self.at = at
        self.tokens = tokens


class Log:
    """Every window of a period, both its ends included."""

    def __init__(self, period_s):
        self.period_s = period_s
        self.entries = deque()
        self.tokens = 0
        #: The most requests and tokens in any window so far.
        self.worst = (0, 0)

    def add(self, entry):
        self.entries.append(entry)
        self.tokens += entry.tokens
        while self.entries[0].at < entry.at - self.period_s:
            self.tokens -= self.entries.popleft().tokens
        requests, tokens = self.worst
        self.worst = max(requests, len(self.entries)), max(tokens, self.tokens)

    def correct(self, entry, tokens):
        if self.entries and entry.at >= self.entries[0].at:
            self.tokens += tokens - entry.tokens


class Account:
    """Whoever sends on it, in whatever process, in the order of its own time."""

    def __init__(self):
        self.minute, self.day = Log(MINUTE_S), Log(DAY_S)
        self.entries = []

    def send(self, tokens, now):
        # Sums of floats may be a hair out of order.
        entry = Entry(max(now, self.entries[-1].at) if self.entries else now, tokens)
        self.entries.append(entry)
        self.minute.add(entry)
        self.day.add(entry)
        return entry

    def settle(self, entry, actual):
        self.minute.correct(entry, actual)
        self.day.correct(entry, actual)
        entry.tokens = actual

    def keeps(self, limit):
        """Say whether no window ever held more than the limit."""
        most = (*self.minute.worst, *self.day.worst)
        allowed = (limit.rpm, limit.tpm, limit.rpd, limit.tpd)
        return all(known is None or much <= known for much, known in zip(most, allowed, strict=True))

    def used_since(self, since):
        """Return the requests and the tokens sent at `since` or later."""
        entries = [entry for entry in self.entries if entry.at >= since]
        return len(entries), sum(entry.tokens for entry in entries)
