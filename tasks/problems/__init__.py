"""The tasks that policies learn: one file per task, with the gold, references, answers or feedback that it has."""
