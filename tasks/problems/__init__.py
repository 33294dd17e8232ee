"""What the policies are to learn: one file for each task, with the gold, references, answers or feedback it offers."""
