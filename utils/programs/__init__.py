"""What programs of one kind share; only programs import this, and nothing heavy is loaded before options are read."""
