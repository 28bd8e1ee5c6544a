"""How the endpoint does as a whole: is it down, does anything get on, was anything ever found there."""

from collections import deque
from datetime import timedelta
from typing import Final

from batcher.request import Claimed, Landed, Reply
from batcher.stop import Stop
from batcher.verdict import Again, Done, Fail, Halt, Hold, Standing, Verdict, blames_endpoint, endpoint_hold

#: So many lost in a row are no chance, even where half of all replies fail (1 in 65,536).
IN_A_ROW: Final = 16
#: So many requests that are all not found, and nothing else: the address is wrong, not the rows.
ALL_ABSENT: Final = 100
#: If so few are left, what looks like an outage may be these rows; so long it costs them nothing, in seconds.
FEW: Final = 5
TAIL_PATIENCE_S: Final = 30.0
#: An outage is told when so many probes have failed: most end before.
TOLD: Final = 2
#: A pause of a pool that is longer than this is told, in seconds.
LONG_PAUSE_S: Final = 60.0


class Health:
    """What the endings of all attempts together say of the endpoint. Pure: `now` is an argument.

    One lost attempt says little: it may be the row's own fault. The endpoint is *down* once another is lost
    that was sent after the first was, with nothing answered in between, or once `IN_A_ROW` are, or where none
    can leave at all. What is lost while it is down costs the rows nothing, so something else has to end it:
    the run stops when nothing has got on for `max_stall_s`.
    """

    def __init__(self, max_stall_s: float) -> None:
        self._max_stall_s = max_stall_s
        #: Whether anything was ever answered with success.
        self._found = False
        self._down = False
        #: How many attempts were lost since the last reply, and when the first of them was.
        self._in_a_row = 0
        self._since = 0.0
        #: Whose attempts these were; and whose were lost and then others answered.
        self._lost: set[str] = set()
        self._suspects: set[str] = set()
        #: Holds since it last answered, and the end of the last one.
        self._holds = 0
        self._held_until = float("-inf")
        #: The end of the last hold of a pool.
        self._pool_until = float("-inf")
        self._absent: set[str] = set()
        self._stalled_since: float | None = None
        self._trouble = ""
        #: What whoever watches the run should know, a line each, oldest first.
        self.notices: deque[str] = deque(maxlen=100)

    def standing(
        self, key: str, landed: Landed, *, pool_holds: int, probe: bool, left: int, all_tried: bool
    ) -> Standing:
        """Note that an attempt of the request with this key has landed, and say how things stand.

        `left` is how many requests are not ended; `all_tried` says that each of them has failed before, and
        that no more will come.
        """
        lost = blames_endpoint(landed)
        if lost:
            self._lose(key, landed)
        elif isinstance(landed, Reply):
            self._answer()
        return Standing(
            holds=self._holds if lost and self._down else pool_holds,
            probe=probe,
            down=self._down,
            found=self._found,
            tail=self._found and all_tried,
            suspect=self._found and all_tried and self._are_suspect(left, landed.ended_at),
        )

    def _are_suspect(self, left: int, now: float) -> bool:
        """Say whether the requests that are left are to blame, rather than the endpoint."""
        if len(self._suspects) >= left:
            return True
        return left <= FEW and self._in_a_row > 0 and now - self._since > TAIL_PATIENCE_S

    def _answer(self) -> None:
        """Note a reply that the endpoint itself has made, whatever it says."""
        if not (self._in_a_row or self._down):
            return
        if self._holds >= TOLD:
            self.notices.append("the server answers again")
        if not self._down:
            # Others are answered where these were lost: it may be them.
            self._suspects |= self._lost
        self._lost.clear()
        self._down = False
        self._in_a_row = self._holds = 0

    def _lose(self, key: str, landed: Landed) -> None:
        """Note an attempt that failed as it would if the endpoint were down."""
        self._in_a_row += 1
        if landed.sent_at is not None:
            self._lost.add(key)
        if self._in_a_row == 1:
            self._since = landed.ended_at
        sent_since = self._in_a_row > 1 and landed.sent_at is not None and landed.sent_at >= self._since
        if landed.sent_at is None or sent_since or self._in_a_row >= IN_A_ROW:
            self._down = True

    def learn(self, verdict: Verdict, claimed: Claimed, left: int | None, now: float) -> Stop | None:
        """Note what became of an attempt; return why the run has to stop, if so.

        `left` is how many requests are not ended, if no more will come.
        """
        if isinstance(verdict, Done | Fail):
            self._lost.discard(claimed.request.key)
            self._suspects.discard(claimed.request.key)
        if isinstance(verdict, Done):
            self._found = True
            self._get_on(now)
            return None
        if isinstance(verdict, Halt):
            return Stop(verdict.error, verdict.message)
        until = endpoint_hold(verdict)
        if until is not None:
            self._hold(until, verdict.message, now)
        elif isinstance(verdict, Fail):
            self._get_on(now)
            return None
        self._trouble = verdict.message
        if self._stalled_since is None:
            self._stalled_since = now
        if isinstance(verdict, Hold) and verdict.scope == "pool":
            self._hold_pool(verdict, now)
        absent = isinstance(verdict, Again) and verdict.error == "not_found" and not verdict.replayed
        if absent and self._all_absent(claimed, left):
            return Stop("not_found", f"{verdict.message}; no request was answered otherwise")
        return None

    def _hold(self, until: float, message: str, now: float) -> None:
        # What was under way when the hold began fails too: that is the same hold, not another one.
        if now >= self._held_until:
            self._holds += 1
            if self._holds == TOLD:
                self.notices.append(f"{message}; all rows wait, and one request goes first now and then")
        self._held_until = max(self._held_until, until)

    def _hold_pool(self, hold: Hold, now: float) -> None:
        pause_s = hold.until - now
        if pause_s > LONG_PAUSE_S and now >= self._pool_until:
            what = f"the next request goes in {timedelta(seconds=round(pause_s))}"
            if pause_s > self._max_stall_s:
                what += ", which is longer than --max-stall: the run stops before that"
            self.notices.append(f"{hold.message}; {what}")
        self._pool_until = max(self._pool_until, hold.until)

    def _get_on(self, now: float) -> None:
        """Note that a row has ended; what was under way when a hold began may, and then nothing for long."""
        held = now < max(self._pool_until, self._held_until)
        self._stalled_since = now if held else None

    def _all_absent(self, claimed: Claimed, left: int | None) -> bool:
        """Note a request that found nothing there; say whether all do, so that it is not the rows."""
        self._absent.add(claimed.request.key)
        return not self._found and len(self._absent) >= min(ALL_ABSENT, left or ALL_ABSENT)

    def stalls_in_s(self, now: float) -> float | None:
        """Return how long until nothing has got on for too long; None where all is well."""
        return None if self._stalled_since is None else self._stalled_since + self._max_stall_s - now

    def stall(self) -> Stop:
        """Return why a run is stopped in which nothing gets on."""
        reason = f"{self._trouble}; nothing has got on for longer than --max-stall: run it again later"
        return Stop("stall", reason)
