"""Python interface to a trained model: call it with images of any kind."""
