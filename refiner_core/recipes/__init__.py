"""Recipes: how a trained refiner has to be run."""
