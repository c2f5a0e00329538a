#!/usr/bin/env python
"""Build Occluded-Duke from DukeMTMC-reID and the lists that its authors publish."""

from sagareid.commands.build_occluded_duke import main

if __name__ == "__main__":
    main()
