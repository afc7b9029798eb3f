"""What every room uses: files, the system, validation, the terminal."""
