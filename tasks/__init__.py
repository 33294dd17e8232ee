"""Stages of the pipeline: each reads its section of params.yaml, calls rlhf_core, and writes one folder."""
