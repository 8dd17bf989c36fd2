"""One protocol and a module per library that runs networks."""
