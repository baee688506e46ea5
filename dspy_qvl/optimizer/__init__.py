"""The DSPy optimizer that fits value functions and rerankers."""
