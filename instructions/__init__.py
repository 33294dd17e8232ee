"""The task of following instructions: everyday requests with constraints that code can check."""
