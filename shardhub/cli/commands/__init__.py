"""The commands' options; each command's work is in the module that it imports when it runs."""
