"""HTTP → engine → HTTP: answers requests with the bundles that `finetune` and `export` made.

Imports `bundle` and third parties only: no Paddle, no ONNX tooling, none of the other rooms. What a model needs is
read from its bundle; nothing is configured twice.
"""
