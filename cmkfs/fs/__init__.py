"""The filesystem: the only code that reads and writes the vault."""
