"""Tokens to pixels and back: the interface, grey levels, VQ-GANs, encoding of folders.

It imports common, config and data.
"""
