"""What is read: one protocol, and a module per format."""
