#!/usr/bin/env python
"""Pretrain the embedded CLIP on drawn, captioned pedestrians, measure it, and write its weights and metrics."""

from sagareid.commands.pretrain_clip import main

if __name__ == "__main__":
    main()
