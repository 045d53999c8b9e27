"""Labelled rows from files and from named data sets, split and de-duplicated; no Paddle here.

`assets` brings what comes by pip, `named` turns it into rows, `readers` reads a user's own files, `splits` cuts rows
into train, dev and test. All of them give `bundle.rows.Row`.
"""
