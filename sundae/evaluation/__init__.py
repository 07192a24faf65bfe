"""Figures that say how good samples and codecs are.

It imports common, config, data and codec.
"""
