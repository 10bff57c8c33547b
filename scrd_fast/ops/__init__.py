"""Operations: one file each, with the checks and the plain reference implementation."""
