"""Losses that fit a reward model, one file each."""
