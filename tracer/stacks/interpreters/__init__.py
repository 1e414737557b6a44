"""Interpreters in traced processes: found in their mappings, their frames named, and put in their place among the
native ones.  A module a language, each with the layouts of its versions as data.
"""
