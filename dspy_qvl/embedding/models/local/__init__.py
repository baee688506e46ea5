"""Embedding models in this process."""
