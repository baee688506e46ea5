"""From columns and scores to a fit, and how good it is."""
