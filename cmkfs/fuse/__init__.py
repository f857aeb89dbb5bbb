"""The FUSE protocol: the kernel's requests as calls with plain values, and their results as its answers."""
