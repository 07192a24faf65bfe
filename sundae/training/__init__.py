"""The training loop: batches, optimisers, averages, schedules, logs and run folders.

It imports common, config, data, codec and prior.
"""
