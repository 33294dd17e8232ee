"""The interface between algorithms and loops, and code that several methods share."""
