"""The commands of `rlhf`."""
