#!/usr/bin/env python
"""A web page and a JSON API over a gallery: who is this?"""

from sagareid.commands.serve import main

if __name__ == "__main__":
    main()
