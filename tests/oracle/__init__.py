"""The oracle suite: every method, run by the project's own loops, on a problem small enough to enumerate."""
