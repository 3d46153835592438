"""What measures controllers and the environment."""
