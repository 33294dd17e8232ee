"""The embedded default's world: a help desk with its customers, its agents' phrases and its gold rubric."""
