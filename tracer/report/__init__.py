"""Reports: a finished trace in, text for people or JSON for programs out.  One module an output; none parses an option.

``escape`` makes names from the target safe to print, ``layout`` fits them into columns, ``wording`` says things.
"""
