"""Planning an extraction without torch: prompts, tokens, images, sizes, cost."""
