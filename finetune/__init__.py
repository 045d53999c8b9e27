"""Rows → bundle: reads labelled text, fine-tunes ERNIE or BERT with PaddleNLP, evaluates, writes a bundle.

Paddle is imported inside the functions that need it: `import paddlenlp` takes many seconds, which neither `--help` nor
the readers should pay.
"""
