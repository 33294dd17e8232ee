"""Shared by both loops: the run, the optimiser step, resume states, and checks before training."""
