"""Tokens to pixels and back: the interface, grey levels, VQ-GANs, encoding of folders.

Imports: common, config, data.
"""
