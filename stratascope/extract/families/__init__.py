"""Model families: sizes, image grids and tilings. No torch."""
