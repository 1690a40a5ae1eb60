"""The way between adapters and the executor: messages, the adapter's link, the executor's desk."""
