"""`python -m dsabench`: the command line, where the script is not on the PATH."""

from dsabench.cli.app import main

if __name__ == "__main__":  # a process that it spawns imports this file under another name
    main()
