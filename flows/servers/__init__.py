"""The processes of `rlhf up`: Prefect, MLflow, and the guard in front of them."""
