"""Models, tokenizers and what runs through them: checkpoints, forward passes, sampling."""
