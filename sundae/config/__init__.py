"""The run file: sections whose keys are declared once, and what is made of the declarations.

A key of [trainer], [data], [vqgan], [objective], [sampling] or [wandb] is one field in `sections`,
a key of [net] one in `hourglass_transformer.config`; unroll_steps, above the sections, is one of
`run_file.RunConfig`. `keys` describes fields, from which `flags` makes command-line flags and
`docs/make_settings.py` the tables of the docs; `values` and `run_file` read and check.

Imports: hourglass_transformer, common.
"""
