"""params.yaml: its schema, how it is read, and what is wrong with a value."""
