"""What fetches or makes images and token grids: emoji and digits.

Imports: common, data, codec.
"""
