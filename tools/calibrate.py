#!/usr/bin/env python
"""Find the similarity from on which two images are called one person, on pairs that are known."""

from sagareid.commands.calibrate import main

if __name__ == "__main__":
    main()
