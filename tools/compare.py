#!/usr/bin/env python
"""Train and evaluate several configs with several seeds, and print one table with mean and standard deviation."""

from sagareid.commands.compare import main

if __name__ == "__main__":
    main()
