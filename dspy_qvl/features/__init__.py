"""Columns beside the embedding."""
