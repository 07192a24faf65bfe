"""Training a VQ-GAN from a folder of images (arXiv 2012.09841, section 3.1).

Imports: hourglass_transformer, common, config, data, codec, features, training.
"""
