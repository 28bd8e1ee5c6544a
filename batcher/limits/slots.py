"""How many requests may be in flight at an endpoint."""


class Slots:
    """A fixed number of places on the wire: one is taken at admission and free again when the reply is in.

    >>> slots = Slots(2)
    >>> slots.take(2)
    >>> slots.free
    0
    """

    __slots__ = ("_taken", "ceiling")

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self._taken = 0

    @property
    def free(self) -> int:
        """How many may be taken now."""
        return self.ceiling - self._taken

    @property
    def taken(self) -> int:
        """How many are in flight."""
        return self._taken

    def take(self, count: int) -> None:
        """Take `count` places; never more than are free."""
        if count > self.free:
            message = f"{count} slots taken where {self.free} are free"
            raise ValueError(message)
        self._taken += count

    def release(self, count: int) -> None:
        """Free `count` places; never more than are taken."""
        if count > self._taken:
            message = f"{count} slots released where {self._taken} are taken"
            raise ValueError(message)
        self._taken -= count
