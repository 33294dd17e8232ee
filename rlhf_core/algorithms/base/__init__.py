"""The seam between algorithms and loops, and what several methods share."""
