"""Fine-tuning under control: signals → diagnosis → intervention.

`signals` measures a running training and writes them down (`record`), `diagnosis` names what is wrong from what is
written, `intervention` does something about it. The training itself stays PaddleNLP's.
"""
