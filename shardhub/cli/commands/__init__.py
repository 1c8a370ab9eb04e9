"""The commands' options; what each does is in the module it imports when it runs."""
