#!/usr/bin/env python
"""Hand a trained run on by name: weights, configuration and a model card in one folder, and on a hub if asked."""

from sagareid.commands.publish import main

if __name__ == "__main__":
    main()
