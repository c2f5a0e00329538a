#!/usr/bin/env python
"""Convert checkpoints between published layouts and ours."""

from sagareid.commands.convert_checkpoint import main

if __name__ == "__main__":
    main()
