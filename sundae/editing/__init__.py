"""Editing of images: requests and masks, alignment with patches, compositing, `Sampler`, files.

Imports: hourglass_transformer, common, config, codec, prior, sampling.
"""
