"""Forms of feedback, one file each."""
