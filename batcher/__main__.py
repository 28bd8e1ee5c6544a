"""`python -m batcher` is the command."""

from batcher.cli import main

main()
