"""Forms of feedback, the annotators who give it, and what follows from it."""
