"""Finding and masking secrets and personal data: rules, scanner, and the ways to apply them."""
