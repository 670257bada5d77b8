"""How good a repair is: scores between pictures, with weights and without."""
