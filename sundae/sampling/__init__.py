"""Sampling: the loop, its schedule and strategies, canvases, and what is written.

It imports the rooms up to training.
"""
