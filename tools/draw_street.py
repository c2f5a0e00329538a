#!/usr/bin/env python
"""Draw a street that two cameras film, with true tracks and a detector's boxes in MOT-Challenge's layout."""

from sagareid.commands.draw_street import main

if __name__ == "__main__":
    main()
