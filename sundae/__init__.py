"""Learn a discrete image prior as a step-unrolled denoising autoencoder, and sample it in parallel."""
