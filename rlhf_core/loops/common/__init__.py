"""What both loops share: the run, the optimiser step, resuming, and checks before a training."""
