"""Reads a script of faults: JSON Lines, one `Scheduled` a line.

{"fault": "503", "at_s": 20, "for_s": 10}
{"fault": "429", "at_s": 0, "for_s": 5, "share": 0.5}
{"fault": "reset-before", "after": 1000, "count": 50}
"""

from pathlib import Path

import msgspec

from batcher.simulator.config import Scheduled, StartError


def read_script(path: Path) -> tuple[Scheduled, ...]:
    """Return the script in this file; raises `StartError`, which names the line, where it is none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StartError(f"can't read {path}: {error.strerror}") from None
    decoder = msgspec.json.Decoder(Scheduled)
    script = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            script.append(decoder.decode(line))
        except msgspec.ValidationError as error:
            raise StartError(f"{path} line {number}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StartError(f"{path} line {number}: this is not JSON: {error}") from None
    return tuple(script)
