#!/usr/bin/env python
"""Time steps and extraction against the same computation done the plain way, with random weights."""

from sagareid.commands.benchmark import main

if __name__ == "__main__":
    main()
