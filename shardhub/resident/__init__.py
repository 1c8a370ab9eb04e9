"""The resident: the process that stays on a machine, and starts and ends its nodes as the cluster's members order."""
