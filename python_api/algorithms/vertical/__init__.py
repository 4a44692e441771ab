"""Vertical federated learning: one table per party, one party with labels, rows joined by id."""
