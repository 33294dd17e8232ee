"""Forms of feedback, and the annotators who give it."""
