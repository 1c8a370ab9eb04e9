"""What chains give, measured side by side with what a user would run instead, in one run on one machine."""
