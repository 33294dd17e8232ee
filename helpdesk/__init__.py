"""The built-in example task: a help desk with customers, agents' phrases and a gold rubric."""
