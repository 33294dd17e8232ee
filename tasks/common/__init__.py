"""Code that several stages share: load models, read rows as examples, sample, train, and check before training."""
