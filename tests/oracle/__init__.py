"""The oracle suite: every method, through the product's own loops, on problems small enough to enumerate."""
