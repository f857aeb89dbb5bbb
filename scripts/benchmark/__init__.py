"""The parts of scripts/bench: filesystems, workloads, and what is reported."""
