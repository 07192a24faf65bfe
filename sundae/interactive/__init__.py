"""Sampling by hand: a model that stays loaded, its settings, a terminal menu and a web page.

`settings` declares what can be changed between two samplings, `terminal` and `page` offer it,
`recording` writes what is sampled, `server` and `guard` serve the page.
Gradio stands only in `page`, `results` and `controls`.

Imports: common, config, sampling, editing.
"""
