"""What several stages do: load models, read rows as examples, sample, train, check before training."""
