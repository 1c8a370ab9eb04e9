"""The head's side: which node runs which stage, the links to them, and the steps that go round."""
