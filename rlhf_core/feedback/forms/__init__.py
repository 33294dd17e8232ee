"""One file for each form of feedback."""
