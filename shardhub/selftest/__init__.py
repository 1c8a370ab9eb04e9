"""The self-test of a machine: kernels, chains of tiny models of ten families, speeds, and a report to paste."""
