"""The local Hub: serves the Hub's HTTP API from one folder to the real huggingface_hub client."""
