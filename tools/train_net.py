#!/usr/bin/env python
"""Train and evaluate: FastReID's train_net.py, with the stages that a config lists."""

from sagareid.commands.train_net import main

if __name__ == "__main__":
    main()
