#!/usr/bin/env python
"""Measure how long the page of a gallery takes to answer, with one client and with many at once."""

from sagareid.commands.benchmark_serving import main

if __name__ == "__main__":
    main()
