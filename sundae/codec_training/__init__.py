"""Training a VQ-GAN from a folder of images (arXiv 2012.09841, section 3.1).

It imports the rooms up to training.
"""
