"""Any pretrained VQ-GAN behind one codec, loaded without running code from its files."""

from sundae.codec.vqgan.codec import VQGANCodec
from sundae.codec.vqgan.load import load_vqgan, new_vqgan

__all__ = ["VQGANCodec", "load_vqgan", "new_vqgan"]
