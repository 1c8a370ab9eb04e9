"""Plans: which layers go to which stage, decided from numbers alone."""
