"""What every other package builds on: batches, devices, errors, option fields, lazy torch and random streams."""
