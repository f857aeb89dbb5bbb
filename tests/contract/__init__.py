"""One suite for everything that claims to be a key provider."""
