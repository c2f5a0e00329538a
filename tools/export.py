#!/usr/bin/env python
"""Export a trained run as one file, checked against PyTorch before it is kept."""

from sagareid.commands.export import main

if __name__ == "__main__":
    main()
