"""What may be asked of an attention function: its arrays, its options, and how both are checked."""
