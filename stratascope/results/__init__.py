"""Results: one class a kind with schema, file, summary and figure; a registry of all kinds."""
