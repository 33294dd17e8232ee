"""The report: findings, comparison, charts and the page."""
