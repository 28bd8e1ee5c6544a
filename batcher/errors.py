"""Every exception that batcher raises on purpose, and the exit code each one means.

All derive from `BatcherError`. The message of each is one line that says what is wrong, where, and what
to do; the command prints it and nothing else.
"""

from typing import ClassVar


def one_line(text: str) -> str:
    """Show control characters as escapes: file names and servers may hold any, and a message is one line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class BatcherError(Exception):
    """Something that batcher can name went wrong: read the message, it says what to do."""

    exit_code: ClassVar[int] = 2


class ConfigurationError(BatcherError):
    """An option, a setting or the environment is wrong: correct it and run the same command again."""


class JobFileError(BatcherError):
    """The job file as a whole can't be read: name another file, or mend this one, and run again."""


class StoreError(BatcherError):
    """The store can't be used as it is: name another with `--store`, or do what the message says."""


class StoreLockedError(StoreError):
    """Another process is running this job: wait for it, or stop it by the pid in the message."""


class StoreWriteError(StoreError):
    """The store can't be written or read, or is damaged: do what the message says, and run again."""

    exit_code = 3


class SimulatorError(BatcherError):
    """The simulator can't start: correct the option, or choose another port."""
