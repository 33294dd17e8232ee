"""Forms of feedback, annotators, and the preferences that their answers imply."""
