"""What breaks is mended or reported, never hidden."""
