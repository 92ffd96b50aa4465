"""`python -m commands` is `lmworks`."""

from commands.main import main

main()
