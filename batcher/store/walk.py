"""The job file laid beside the store: which lines are known, and which of them are not settled yet."""

from collections.abc import Collection, Mapping, Sequence

from batcher.request import Row, State
from batcher.store.catalogue import many, query
from batcher.store.writer import Values, Writer


class Walk:
    """One pass over the job file, group by group, in its order.

    As long as store and file agree they are walked side by side; keys are looked up only from a line on
    which they differ.

    Args:
        writer: the store.
        reopen: the ends after which a row is tried again.
        last_row: the newest `rows.id`.
        last_seq: the last line that the store knows.
        detached: how many of its rows are on no line.
    """

    def __init__(
        self, writer: Writer, reopen: Collection[State], last_row: int, last_seq: int, detached: int
    ) -> None:
        self._writer = writer
        self._reopen = reopen
        self._last_row = last_row
        self._last_seq = last_seq
        self._detached = detached
        self._has_keys = False
        #: line -> rows.id, of the rows that were handed out as fresh and have not ended.
        self.ids: dict[int, int] = {}
        #: The last line that was matched with the store.
        self.walked = 0

    async def fresh(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Note where these lines of the file are, and return those that are not settled yet.

        Groups come in the order of the file. As long as store and file agree they are walked side by side;
        keys are looked up only from a line on which they differ.
        """
        # Blank lines belong to no group; a row that stood on one has left.
        start, self.walked = self.walked + 1, rows[-1].seq
        if start > self._last_seq and not self._detached:
            self._insert(rows)
            return rows
        return await self._place(rows, await self._known(start, rows[-1].seq))

    async def _known(self, first: int, last: int) -> dict[int, tuple[int, bytes, State | None]]:
        """Return line -> (rows.id, key, state) of what stood on these lines at the last run."""
        found = await self._writer.fetch(query("rows_between"), (first, last))
        return {seq: (row, key, state) for seq, row, key, state in found}

    async def _place(
        self, rows: Sequence[Row], there: Mapping[int, tuple[int, bytes, State | None]]
    ) -> Sequence[Row]:
        """Match each row with what the store knows of it; write down those that moved, came or went."""
        lines = {row.seq: row for row in rows}
        strangers = [row for row in rows if row.seq not in there or there[row.seq][1] != row.key]
        displaced = [row for seq, (row, key, _) in there.items() if seq not in lines or lines[seq].key != key]
        states: dict[int, State | None] = {}
        for seq, (row, key, state) in there.items():
            if seq in lines and lines[seq].key == key:
                self.ids[seq], states[seq] = row, state
        moved = await self._look_up(strangers) if strangers and self._may_have_moved(rows, displaced) else {}
        for line in strangers:
            if line.key in moved:
                self.ids[line.seq], states[line.seq] = moved[line.key]
        if displaced or moved:
            await self._move(displaced, [line for line in strangers if line.key in moved])
            self._detached += len(displaced)
        self._insert([line for line in strangers if line.key not in moved])
        return await self._unsettled(rows, states)

    def _may_have_moved(self, rows: Sequence[Row], displaced: Collection[int]) -> bool:
        """Say whether the store knows rows that the walk has not met on their lines."""
        return bool(displaced or self._detached or rows[-1].seq < self._last_seq)

    async def _look_up(self, rows: Sequence[Row]) -> dict[bytes, tuple[int, State | None]]:
        if not self._has_keys:
            await self._writer.fetch(query("index_keys"), ())
            await self._writer.fetch(query("index_keys_order"), ())
            self._has_keys = True
        keys = [row.key for row in rows]
        found = await self._writer.fetch(many("rows_by_key", len(keys)), keys)
        return {key: (row, state) for key, row, state in found}

    async def _move(self, displaced: Sequence[int], arrived: Sequence[Row]) -> None:
        # A row that arrives here may still stand on a later line: it leaves that one first.
        leaving = [*displaced, *(self.ids[row.seq] for row in arrived)]
        places = [value for row in arrived for value in (self.ids[row.seq], row.seq, row.custom_id)]
        leave = (many("detach_rows", len(leaving)), leaving)
        arrive = (many("attach_rows", len(arrived)), places)
        await self._writer.run(leave, *([arrive] if arrived else []))

    def _insert(self, rows: Sequence[Row]) -> None:
        """Let new rows be written with the next group: before their claims, which come later."""
        values: Values = []
        for row in rows:
            self._last_row += 1
            self.ids[row.seq] = self._last_row
            values += (self._last_row, row.seq, row.key, row.custom_id)
        self._writer.add("insert_rows", values)

    async def _unsettled(self, rows: Sequence[Row], states: Mapping[int, State | None]) -> Sequence[Row]:
        reopened = [seq for seq, state in states.items() if state in self._reopen]
        if reopened:
            ids = [self.ids[seq] for seq in reopened]
            await self._writer.run((many("reopen_rows", len(ids)), ids))
        settled = {seq for seq, state in states.items() if state is not None}.difference(reopened)
        for seq in settled:
            del self.ids[seq]
        return [row for row in rows if row.seq not in settled]
