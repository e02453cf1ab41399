"""What does a kernel do? Its weights are measured and compared with the right ones, and described."""
