"""The wire: generated stubs, messages to values and back, errors to statuses and back."""
