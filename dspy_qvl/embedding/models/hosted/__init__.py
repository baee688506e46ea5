"""Embedding models of a provider, asked through litellm."""
