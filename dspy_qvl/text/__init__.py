"""Rated texts, and how examples are written as texts."""
