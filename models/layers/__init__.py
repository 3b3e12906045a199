"""The building blocks that rows of a model YAML name; every module here is loaded at the first look-up."""
