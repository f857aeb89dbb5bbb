"""Keys: tokens, CMKs, and the gate that decides who may use a DEK."""
