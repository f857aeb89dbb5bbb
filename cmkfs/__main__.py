"""`python -m cmkfs` is `cmkfs`."""

from cmkfs.cli.app import main

if __name__ == "__main__":
    main()
