#!/usr/bin/env python
"""Extract the feature of every image under a folder with a trained run."""

from sagareid.commands.extract import main

if __name__ == "__main__":
    main()
