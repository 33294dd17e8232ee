"""Files that stages write: JSON lines and CSV tables."""
