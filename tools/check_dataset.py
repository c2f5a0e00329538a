#!/usr/bin/env python
"""Check a data set before training on it: counts, files that cannot be read, duplicates, queries without a match."""

from sagareid.commands.check_dataset import main

if __name__ == "__main__":
    main()
