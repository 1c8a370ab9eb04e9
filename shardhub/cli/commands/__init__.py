"""One command a file: its options, what it calls, and what it prints; heavy modules are imported when it runs."""
