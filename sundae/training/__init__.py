"""The training loop: batches, optimisers, averages, schedules, logs and run folders.

Imports: hourglass_transformer, common, config, data, prior.
"""
