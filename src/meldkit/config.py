"""The configuration class that mergekit's notebooks use, under the same name."""

from meldkit.recipe.schema import MergeConfiguration

__all__ = ["MergeConfiguration"]
