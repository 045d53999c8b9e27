"""Load on the running gateway, over HTTP: how fast, how many, and how it fails.

Speaks HTTP only and imports none of the other rooms, so that it measures what a caller sees. Locust makes the load in
a process of its own (it changes the socket module when it is imported); this package plans the run before it and
reads the results after it. What the model is worth is `finetune.evaluate`'s question, not this room's.
"""
