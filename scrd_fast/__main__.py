"""python -m scrd_fast, as torchrun starts it."""

from scrd_fast.cli import main

main()
