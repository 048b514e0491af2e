"""What proves it: measurements and the report made of them."""
