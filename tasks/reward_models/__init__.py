"""How reward models are trained: what they start from, what they learn from, and how they are measured."""
