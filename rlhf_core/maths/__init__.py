"""Pure functions of tensors: losses, advantages, KL estimators, averaging weights and metrics."""
