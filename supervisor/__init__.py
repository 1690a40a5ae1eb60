"""The root daemon, its command line, and what they decide: policy, vault, lifecycle."""
