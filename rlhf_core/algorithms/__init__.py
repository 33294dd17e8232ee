"""One file per policy method; `base` holds what they share, `reward` the losses of reward models."""
