"""Orchestration: Prefect flows over DVC's graph, isolated runs, local services and the command line."""
