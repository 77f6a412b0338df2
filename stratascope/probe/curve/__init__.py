"""Layer curves and what is derived from them: detected and absent layers, advantages over baselines, transfer, calibration, codelength."""
