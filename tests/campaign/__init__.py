"""Campaigns that try to break the promises on real mounts; `scripts/` runs them for long, the tests for seconds."""
