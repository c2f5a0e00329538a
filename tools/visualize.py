#!/usr/bin/env python
"""Draw ranked lists of trained models, side by side if there are several, and where their anchors look."""

from sagareid.commands.visualize import main

if __name__ == "__main__":
    main()
