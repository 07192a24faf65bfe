"""Figures: how good samples and codecs are, and what a run file costs on which GPU.

It imports common, config, data, codec, prior and sampling.
"""
