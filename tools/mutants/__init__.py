"""Planted faults: each is planted in a copy of the project, where the tests for that module must fail.

`fault` defines a fault, `faults` lists them, `copies` plants them and runs the tests, `page` writes the result.
"""
