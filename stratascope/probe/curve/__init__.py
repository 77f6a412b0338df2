"""Layer curves and what is derived from them: onset and offset, advantages over baselines, transfer, calibration, codelength."""
