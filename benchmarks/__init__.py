"""Measurements of speed and memory. Results are stored in benchmarks/results, with the machine, commit and date."""
