"""Many repairs, from files to files: the list of jobs, what was done already, and the run."""
