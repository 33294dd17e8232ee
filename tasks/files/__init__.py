"""The files between stages: their paths, what each stage declares, and the formats JSON Lines and CSV."""
