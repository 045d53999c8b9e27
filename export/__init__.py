"""Bundle → bundle → model repository: conversion, fusion, quantization, proof.

Every step reads one artifact of a bundle and adds the next: ``paddle`` → ``paddle_static`` → ``onnx_fp32`` →
``onnx_fused`` → ``onnx_int8``, or for a GPU ``onnx_fp16``. After each, parity with the training framework is measured
on the golden rows. What the fused graph says of the dev rows decides how a text's windows are joined; at the end a
gate decides what is served.
Training belongs to `finetune`, answering requests to `serving`.
"""
