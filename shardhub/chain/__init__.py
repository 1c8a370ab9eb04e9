"""The head's side: which node runs which stage, the links to the nodes, and the steps that travel over them."""
