"""Vectors that were paid for, in memory and in one file."""
