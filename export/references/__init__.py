"""Outside references of the bench: the same weights in other people's runtimes, each in an environment of its own.

`known` says which there are, `weights` writes the bundle's checkpoint as transformers reads it, `worker` is run by the
reference's own Python, `process` talks to it. None of them is needed to train, export or serve.
"""
