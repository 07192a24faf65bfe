"""Sampling: `BaseSampler`, the loop with its strategies, canvases, and samples as files.

Imports: hourglass_transformer, common, config, codec, prior, training.
"""
