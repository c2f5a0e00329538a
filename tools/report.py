#!/usr/bin/env python
"""Make one web page of a run: results, curves, config, ranked lists good and bad, attention."""

from sagareid.commands.report import main

if __name__ == "__main__":
    main()
