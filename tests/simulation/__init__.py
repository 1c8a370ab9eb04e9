"""Simulation: real heads and real nodes on an event loop with virtual time, a network in memory, faults from a seed."""
