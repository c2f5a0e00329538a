#!/usr/bin/env python
"""Train a small read-out beside a run: how much of the person is seen, in a crop and in each of its sixths."""

from sagareid.commands.fit_visibility import main

if __name__ == "__main__":
    main()
