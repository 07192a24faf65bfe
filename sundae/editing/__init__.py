"""Editing of images: requests and masks, alignment with patches, compositing, `Sampler`, files.

It imports the rooms up to training, and sampling.
"""
