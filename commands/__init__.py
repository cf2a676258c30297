"""What each command of ``cli.py`` does."""
