"""Pretrained networks that see images: their weights, and features of images.

Imports: common.
"""
