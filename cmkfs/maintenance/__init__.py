"""Work on a vault that is not mounted."""
