"""Where a request's time goes: the whole HTTP path beside the bare engine, at the same threads and on the same texts.

Not part of what serves. Every candidate is a process of its own: the bare engine (`bare`), a plain FastAPI loop around
ONNX Runtime (`plain`), the gateway on each of its engines, and the load generator (`load`), whose own cost is reported.
"""
