"""The process that serves a stage: gRPC in front of an engine, from start to drain."""
