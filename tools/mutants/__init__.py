"""Planted faults: each is put into a copy of the project, where the tests that concern it must fail.

`fault` says what a fault is, `faults` lists them, `copies` plants them and runs the tests, `page` writes the result.
"""
