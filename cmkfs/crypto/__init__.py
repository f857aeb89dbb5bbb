"""Keys and bytes to bytes. No I/O here; docs/format.md is the specification."""
