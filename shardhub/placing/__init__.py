"""Placing: which machine of a cluster runs which layers, decided from measurements alone."""
