"""A fake OpenAI server for demos, tests and benchmarks.

It imports nothing of the rest of batcher: it has to err independently. Start it from a command
(`batcher simulate`), or from Python:

    from batcher.simulator import Config, run
    run(Config(port=0, rpm=500), ready=print)      # blocks until SIGINT or SIGTERM

or, inside an event loop, `await serve(Config(port=0), ready=print)` until it is cancelled.
"""

from batcher.simulator.config import FAULT_NAMES, Config, Scheduled, StartError
from batcher.simulator.script import read_script
from batcher.simulator.server import run, serve

__all__ = ["FAULT_NAMES", "Config", "Scheduled", "StartError", "read_script", "run", "serve"]
