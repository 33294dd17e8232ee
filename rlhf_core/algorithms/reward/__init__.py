"""Losses of reward models, one file each."""
