"""Servers that count one thing in their own ways, over any period, and what their headers say of it."""

import math
from collections import deque

from batcher.simulator.limits import duration


class Refilling:
    """Starts full, holds the limit, and refills evenly, as OpenAI's look like."""

    def __init__(self, limit, period_s=60.0, now=0.0):
        self.limit, self.per_s, self.now = limit, limit / period_s, now
        self.remaining = float(limit)

    def pass_to(self, now):
        self.remaining = min(self.limit, self.remaining + (now - self.now) * self.per_s)
        self.now = now

    def take(self, amount):
        self.remaining -= amount

    def wait_s(self, amount):
        return max(amount - self.remaining, 0.0) / self.per_s

    def reset_s(self):
        return (self.limit - self.remaining) / self.per_s


class Sliding:
    """Grants its limit in any period; what was taken comes back when it is a period old."""

    def __init__(self, limit, period_s=60.0, now=0.0):
        self.limit, self.period_s, self.now = limit, period_s, now
        self.remaining = limit
        self.log = deque()

    def pass_to(self, now):
        self.now = now
        while self.log and self.log[0][0] + self.period_s <= now:
            self.remaining += self.log.popleft()[1]

    def take(self, amount):
        self.log.append((self.now, amount))
        self.remaining -= amount

    def wait_s(self, amount):
        missing = amount - self.remaining
        for at, taken in self.log:
            if missing <= 0:
                return 0.0
            missing -= taken
            if missing <= 0:
                return at + self.period_s - self.now
        return 0.0

    def reset_s(self):
        return self.log[-1][0] + self.period_s - self.now if self.log else 0.0


class Fixed:
    """Grants its limit in each period of its own clock."""

    def __init__(self, limit, period_s=60.0, now=0.0):
        self.limit, self.period_s, self.now, self.began = limit, period_s, now, now
        self.remaining = limit

    def pass_to(self, now):
        self.now = now
        if now >= self.began + self.period_s:
            self.began += (now - self.began) // self.period_s * self.period_s
            self.remaining = self.limit

    def take(self, amount):
        self.remaining -= amount

    def wait_s(self, amount):
        return 0.0 if amount <= self.remaining else self.reset_s()

    def reset_s(self):
        return self.began + self.period_s - self.now


def whole_seconds(seconds):
    """Write a duration as those do who don't care for less: `0s`, `59s`, `7m12s`, `2h24m0s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return b"%b%ds" % (parts.encode(), rest)


def plain_seconds(seconds):
    """Write a duration as a number of seconds, rounded up."""
    return b"%d" % math.ceil(seconds)


ROUNDINGS = {"ms": duration, "whole seconds": whole_seconds, "plain seconds": plain_seconds}


def said(limit=None, remaining=None, reset=None, kind=b"requests"):
    """Make the headers that say these, in bytes or as numbers; None is not said."""
    values = {b"limit": limit, b"remaining": remaining, b"reset": reset}
    return [
        (b"x-ratelimit-%b-%b" % (name, kind), b"%d" % value if isinstance(value, int) else value)
        for name, value in values.items()
        if value is not None
    ]


def headers(server, write=duration):
    return said(server.limit, int(server.remaining + 1e-6), write(server.reset_s()))
