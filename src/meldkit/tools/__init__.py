"""Programs built from the same parts as merges."""
