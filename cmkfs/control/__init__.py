"""The control socket: how commands talk to a mount."""
