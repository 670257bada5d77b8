"""Images, masks and crops: everything about pixels and nothing about models."""
