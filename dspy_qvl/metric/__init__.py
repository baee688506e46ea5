"""The metric for DSPy's optimizers."""
