"""Token grids on disk: their format, how they are written, read and split.

Imports: common.
"""
