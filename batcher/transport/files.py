"""How many files, and so sockets, the system lets this process hold open."""

import contextlib
import sys

#: What Windows gives: its sockets are not files, and nothing there has to be raised.
UNLIMITED = sys.maxsize


def raise_file_limit(wanted: int) -> int:
    """Raise the soft limit of open files towards `wanted`, and return what is allowed now.

    Never lowers it. The hard limit is the system's last word; where it is below `wanted`, the caller says
    so or opens fewer connections.
    """
    try:
        import resource
    except ImportError:
        return UNLIMITED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return UNLIMITED
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if target > soft:
        # macOS refuses what is above kern.maxfilesperproc, whatever the hard limit says
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            soft = target
    return soft
