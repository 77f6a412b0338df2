"""Cross-validation: folds, official splits, out-of-fold predictions."""
