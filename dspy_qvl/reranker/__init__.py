"""Passages of a query, best first."""
