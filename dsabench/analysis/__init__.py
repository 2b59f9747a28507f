"""What the store's tables say: variants, tables, results."""
