"""The two loops: `offline` for fixed data, `online` for sampled data. Neither knows which algorithm it runs."""
