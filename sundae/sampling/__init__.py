"""Sampling: the front door, the loop with its strategies, canvases, and samples as files.

It may import common, config, data, codec, prior, training and codec_training.
"""
