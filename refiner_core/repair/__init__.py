"""The repair of a draft, from what is asked to the picture that comes back."""
