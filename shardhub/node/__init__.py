"""A node: the process that serves a stage over gRPC, from start to drain."""
