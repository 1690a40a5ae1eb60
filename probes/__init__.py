"""The eBPF watch: programs, the loader that pins them, the reader of their events."""
