"""Embedding models: built in, hosted, in this process, or a caller's own."""
