"""What does a kernel do? Its weights measured, compared with the right ones, and the difference described."""
