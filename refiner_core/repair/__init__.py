"""The repair of a draft, from the request to the repaired picture."""
