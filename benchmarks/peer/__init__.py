"""The comparison with TRL: both sides take optimiser steps in turn, on the same weights, prompts and lengths."""
