"""Everything that confines one process. Imports nothing else of the project."""
