"""What runs inside the sandboxes: adapters, router, workflow executor and the practice model."""
