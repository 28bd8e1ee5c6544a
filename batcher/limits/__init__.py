"""Admission: how many may be sent, and when. Pure: `now` is an argument, nothing here does I/O."""
