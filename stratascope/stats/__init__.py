"""Statistics shared by probes and analyses: bootstrap, simultaneous bands, AUROC, rank correlation."""
