"""Weights of a composition, found on a few examples without gradients (LoraHub, LM-Cocktail)."""
