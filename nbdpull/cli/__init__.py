"""The command line: words in; lines, JSON and an exit code out. Nothing else prints or exits."""
