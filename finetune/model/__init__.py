"""Base weights and heads: where they come from and how they become a PaddleNLP model."""
