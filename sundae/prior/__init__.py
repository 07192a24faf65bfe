"""The discrete image prior: network, objective, categorical draws, checkpoints.

It imports common, config, data and codec.
"""
