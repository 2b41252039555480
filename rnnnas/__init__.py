"""rnnnas: search, train and compare recurrent language-model cells."""

__version__ = "0.1.0"
