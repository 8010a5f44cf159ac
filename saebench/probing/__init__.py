"""What latents know: k-sparse probing of labelled texts, and absorption of first letters. See docs/probing.md."""
