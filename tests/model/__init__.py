"""Hypothesis and random campaigns against plain models, through the code that mounts use."""
