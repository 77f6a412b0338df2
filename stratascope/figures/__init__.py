"""Drawing functions: arrays and tables in, matplotlib axes out."""
