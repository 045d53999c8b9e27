"""A training on one page: curves, layers, answers, examples, recipe.

`collect` writes down at the end of a run what the page needs and nobody kept, `source` reads a run folder back,
`curves` and `scores` draw, `page` writes the HTML. Everything but `collect` works on files alone and needs no Paddle.
"""
