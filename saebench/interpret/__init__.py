"""What the latents of a trained SAE mean: the contexts that activate them, scores with and without a judge, pages to read."""
