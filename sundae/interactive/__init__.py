"""Sampling by hand: a model that stays loaded, its settings, a terminal menu and a web page."""
