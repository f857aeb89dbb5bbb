"""Bytes to values and back. No I/O and no keys here; docs/format.md is the specification."""
