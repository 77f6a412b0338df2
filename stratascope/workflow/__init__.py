"""What one command does with a store: compute, save the results, draw them, and say in a few words what came out."""
