"""Pure functions of tensors: losses, credit, KL estimators, averaging weights and statistics."""
