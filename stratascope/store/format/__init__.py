"""The store's format: arrays, layout, codecs, tables, provenance."""
