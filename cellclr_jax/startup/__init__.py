"""What a program does about its own process before it does anything else."""
