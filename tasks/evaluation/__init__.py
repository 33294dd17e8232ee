"""Sampling policies and measuring their responses, for stage evaluate."""
