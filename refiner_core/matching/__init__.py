"""Two pictures of the same thing: pose, drift, light, and where they differ."""
