"""Simulation: real heads and nodes on an event loop with virtual time, a network in memory, and seeded faults."""
