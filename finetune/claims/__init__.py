"""What articles claim of fine-tuning, measured again on real data on this machine.

`arms` says what is compared, `measure` trains one arm with one seed and writes its row, `table` judges the rows and
writes the Markdown of docs/claims.md. Trainings are `finetune.train`'s own, on reduced forms of the shipped recipes.
"""
