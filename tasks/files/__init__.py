"""File formats that stages write: JSON Lines and CSV tables."""
