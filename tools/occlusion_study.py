#!/usr/bin/env python
"""Measure how much each model still finds as more and more of a person is hidden."""

from sagareid.commands.occlusion_study import main

if __name__ == "__main__":
    main()
