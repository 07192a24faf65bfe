"""What is computed at once: every budget that bounds memory, in one place.

Results do not depend on them: work beyond a budget is split into parts that follow each other.
"""

from __future__ import annotations

import torch

# Logits of a batch of samples together; 2**30 are 4 GB in float32.
LOGITS = 2**30

# Windows of a canvas, counted over all samples, in one forward pass; more gain no speed.
WINDOWS = 64

# Pixels that a codec decodes or reconstructs in one forward pass: an image of a megapixel takes
# gigabytes.
PIXELS = 2**20

# Pixels of a batch that is encoded in one forward pass: four images of a megapixel.
ENCODED_PIXELS = 2**22

# Scores of (latent vectors x codes) while a codebook is searched; 2**24 are 64 MB in float32.
CODEBOOK_SCORES = 2**24

# Logits that are turned into draws in one go. On the CPU their probabilities stay in the cache, on
# a GPU they take some hundred megabytes. Compiled, only sums of probabilities reach the memory, and
# each part is compiled on its own.
DRAWN_LOGITS_CPU, DRAWN_LOGITS_GPU, DRAWN_LOGITS_COMPILED = 2**19, 2**26, 2**28


def drawn_logits(device: torch.device) -> int:
    """How many logits `sundae.prior.categorical.draw_tokens` handles in one go."""
    if torch.compiler.is_compiling():
        return DRAWN_LOGITS_COMPILED
    return DRAWN_LOGITS_CPU if device.type == "cpu" else DRAWN_LOGITS_GPU
