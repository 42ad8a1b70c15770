"""Adapters of low rank from the difference of two models."""
