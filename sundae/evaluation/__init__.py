"""Figures: how good samples and codecs are, and what a run file costs on which GPU.

Imports: common, config, data, codec, features, prior, training, codec_training, sampling.
"""
