"""First floor: the retriever in pure torch."""
