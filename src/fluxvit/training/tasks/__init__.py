"""What is trained: the losses and everything that they train."""
