"""The value function as a DSPy module."""
