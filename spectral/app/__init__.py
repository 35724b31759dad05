"""The command: configuration, runs, what they keep on disk."""
