"""Plain maths and tables of each operation: what every other implementation is held to."""
