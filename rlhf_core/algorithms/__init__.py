"""Policy methods, one file each. `base` holds the shared code and `reward` the losses of reward models."""
