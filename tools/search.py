#!/usr/bin/env python
"""Search a gallery of extracted features for the images that look like a query."""

from sagareid.commands.search import main

if __name__ == "__main__":
    main()
