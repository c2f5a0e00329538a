#!/usr/bin/env python
"""Draw the SyntheticPedestrians data set, of any size."""

from sagareid.commands.draw_pedestrians import main

if __name__ == "__main__":
    main()
