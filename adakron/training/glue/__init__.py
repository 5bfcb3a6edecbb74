"""GLUE: the methods compared on its eight tasks, runs that resume, and the table. Needs the extra `train`."""
