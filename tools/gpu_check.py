#!/usr/bin/env python
"""Check and measure everything on a GPU in about ten minutes; a dry run on the CPU in two."""

from sagareid.commands.gpu_check import main

if __name__ == "__main__":
    main()
