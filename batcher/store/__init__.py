"""One SQLite file per job: what is in the file, what was sent, what it cost, how each row ended."""
