"""Its place makes the packages below `tests` importable by each other's tests (pytest's `prepend` import mode)."""
