"""Running an extraction: the model, capture and interventions. Needs torch."""
