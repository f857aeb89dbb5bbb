"""cmkfs: an encrypted filesystem whose keys live in an HSM."""

__version__ = "0.1.0.dev0"
