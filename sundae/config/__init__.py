"""The run file: its sections, each key declared once, and how it is read and overridden.

It imports common.
"""
