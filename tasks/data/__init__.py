"""The user's data: readers, formats, cleaning and splits, and the data card."""
