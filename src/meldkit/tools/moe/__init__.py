"""Mixtures of experts from dense models, and from others of their kind."""
