"""Token grids on disk: their format, how they are written, read and split.

It imports common and config.
"""
