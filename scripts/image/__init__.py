"""The parts of scripts/check_image.py: dockerfile, build, container and check."""
