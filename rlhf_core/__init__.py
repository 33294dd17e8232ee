"""RLHF algorithms, losses, loops and evaluation on plain torch, transformers and accelerate."""
