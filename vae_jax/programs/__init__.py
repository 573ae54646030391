"""What is read off traced programs, and how the state of a compiled loop is carried."""
