"""The contract between the rooms: what travels with a model, and the code that two rooms must agree on.

`finetune` writes a bundle, `export` adds artifacts to it, `serving` reads it. Nothing here knows Paddle, ONNX,
Triton or HTTP; the package needs numpy, pydantic and tokenizers only.
"""
