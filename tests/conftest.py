"""Shared by all tests. Its place makes the packages below `tests` importable by each other (pytest's `prepend`).

Under CI Hypothesis tries the same examples each time, so that a run tells about the change and not about its luck;
everywhere else it goes on searching, as the campaign scripts do.
"""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
