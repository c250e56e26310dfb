"""The commands of `mdprune`, one a file: parse, call the library, print."""
