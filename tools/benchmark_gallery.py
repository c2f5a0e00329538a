#!/usr/bin/env python
"""Measure recall, memory, disk and time of a gallery's indexes."""

from sagareid.commands.benchmark_gallery import main

if __name__ == "__main__":
    main()
