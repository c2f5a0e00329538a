#!/usr/bin/env python
"""Train on some data sets, test on others: the table of sources and targets of domain generalisation."""

from sagareid.commands.cross_domain import main

if __name__ == "__main__":
    main()
