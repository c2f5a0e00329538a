#!/usr/bin/env python
"""Measure time and memory of ranking a test set: our blocks of queries, and FastReID's own evaluator."""

from sagareid.commands.benchmark_ranking import main

if __name__ == "__main__":
    main()
