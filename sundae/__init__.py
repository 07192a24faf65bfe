"""A discrete image prior, learned as a step-unrolled denoising autoencoder, sampled in parallel."""
