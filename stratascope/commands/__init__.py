"""The commands by what they do, each a thin shell around one function."""
