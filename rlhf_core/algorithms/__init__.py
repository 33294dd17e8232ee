"""One file per algorithm; `table` maps names to classes."""
