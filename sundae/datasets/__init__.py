"""What fetches or makes images and token grids: emoji and digits.

It imports common, config, data and codec.
"""
