"""Finding the other machines of a cluster: what is announced on the local network, and which address to take."""
