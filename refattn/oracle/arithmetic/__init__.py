"""What arithmetic a kernel claims: number formats and the spec made of them."""
