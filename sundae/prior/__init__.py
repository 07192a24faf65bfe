"""The discrete image prior: network, objective, categorical draws, checkpoints.

Imports: hourglass_transformer, common, config, codec.
"""
