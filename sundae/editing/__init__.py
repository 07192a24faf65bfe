"""Editing of images: masks, compositing, inpainting, outpainting, variations, files.

It imports the rooms up to training, and sampling.
"""
