"""A tokenizer's transplantation: from which tokens match to the rows of those that do not."""
