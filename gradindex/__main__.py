"""`python -m gradindex` is the command line."""

from gradindex.cli.main import main

if __name__ == "__main__":
    main()
