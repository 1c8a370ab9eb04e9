"""Does this machine compute chains rightly? Kernels, tiny models of ten families, speeds, and a report to paste."""
