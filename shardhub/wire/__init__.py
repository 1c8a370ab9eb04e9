"""The wire: generated stubs, conversion of messages to values and of errors to statuses, and back."""
