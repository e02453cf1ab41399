"""The generator of LLVM vector loops."""
