"""Files of any kind: read as text, written whole or not at all, told apart by checksums."""
