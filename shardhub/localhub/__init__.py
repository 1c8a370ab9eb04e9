"""The local Hub: speaks the Hub's HTTP API to the real huggingface_hub client, over LFS, from one folder."""
