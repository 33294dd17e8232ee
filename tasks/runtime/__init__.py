"""What runs around every stage and has no influence on its outputs: resuming, progress, tracking."""
